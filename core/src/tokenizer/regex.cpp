#define PCRE2_CODE_UNIT_WIDTH 8
#include "tokenizer/regex.h"

#include <pcre2.h>

#include <array>

#include "lamina/core/error.h"
#include "lamina/internal/file_text.h"
#include "tokenizer/utf8.h"

namespace lamina::tokenizer {
namespace {

constexpr std::size_t kMaxPattern = 1 << 14;
// Limits for a hostile pattern: a normal split pattern needs a few steps per character and match.
constexpr std::uint32_t kMatchLimit = 20'000'000;
constexpr std::uint32_t kDepthLimit = 10'000;
constexpr std::uint32_t kHeapLimitKib = 64 * 1024;
constexpr std::size_t kJitStackMax = 32 << 20;

std::string pcre_message(int code) {
  std::array<PCRE2_UCHAR, 200> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

/// What a match needs besides the pattern; one for each thread.
struct MatchState {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, kJitStackMax, nullptr);

  MatchState() {
    if (!data || !context) throw std::bad_alloc();
    pcre2_set_match_limit(context, kMatchLimit);
    pcre2_set_depth_limit(context, kDepthLimit);
    pcre2_set_heap_limit(context, kHeapLimitKib);
    // A null stack (JIT not available here) leaves PCRE2 with its own 32 KiB.
    pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~MatchState() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    if (stack) pcre2_jit_stack_free(stack);
  }
  MatchState(const MatchState&) = delete;
  MatchState& operator=(const MatchState&) = delete;
};

}  // namespace

struct Regex::Code {
  pcre2_code* code = nullptr;
  std::string where, source;
  ~Code() { pcre2_code_free(code); }
};

Regex::Regex(std::string_view pattern, std::string_view where) {
  if (pattern.size() > kMaxPattern) {
    fail("{}: a pattern of {} bytes, at most {} are accepted", where, pattern.size(), kMaxPattern);
  }
  const std::string translated = translate_pattern(pattern, where);
  auto code = std::make_shared<Code>();
  code->where = where;
  code->source = pattern;
  int error = 0;
  std::size_t offset = 0;
  // Oniguruma's Ruby syntax lets ^ and $ match at every line, hence MULTILINE.
  code->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                             PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                             &error, &offset, nullptr);
  if (!code->code) {
    fail("{}: pattern {} does not compile: {} at byte {} of {}", where, files::quote(pattern),
         pcre_message(error), offset, files::quote(translated));
  }
  // Without JIT the interpreter does the same, slower.
  (void)pcre2_jit_compile(code->code, PCRE2_JIT_COMPLETE);
  code_ = std::move(code);
}

void Regex::find_all(std::string_view text,
                     std::vector<std::pair<std::size_t, std::size_t>>& out) const {
  thread_local MatchState state;
  out.clear();
  const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(state.data);
  std::size_t at = 0, last_end = text.size() + 1;
  while (at <= text.size()) {
    std::uint32_t options = PCRE2_NO_UTF_CHECK;
    int rc = pcre2_match(code_->code, subject, text.size(), at, options, state.data, state.context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
      rc = pcre2_match(code_->code, subject, text.size(), at, options | PCRE2_NO_JIT, state.data,
                       state.context);
    }
    if (rc == PCRE2_ERROR_NOMATCH) return;
    if (rc < 0) {
      fail("{}: pattern {} gave up at byte {} of a text of {} bytes: {}", code_->where,
           files::quote(code_->source), at, text.size(), pcre_message(rc));
    }
    const auto [begin, end] = std::pair(range[0], range[1]);
    if (begin > end || begin < at) {
      fail("{}: pattern {} matches backwards (\\K), which is not supported", code_->where,
           files::quote(code_->source));
    }
    // An empty match right after the last match does not count, as in the reference.
    if (begin != end || end != last_end) out.emplace_back(begin, end);
    last_end = end;
    if (end > begin) {
      at = end;
    } else {
      at = end + (end < text.size() ? code_point_at(text, end).size : 1);
    }
  }
}

}  // namespace lamina::tokenizer
