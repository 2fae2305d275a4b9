// What the survey costs beside the forward pass it rides on: both over the same prompts, in turns,
// medians; then the largest memory of the survey over two lengths of text.
//
//   survey_cost MODEL PROMPTS [TOKENS] [PIECE] [TIMES]
//
// PROMPTS is read again and again until TOKENS (20000) tokens in pieces of PIECE (512) are there.

#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "lamina/core/threads.h"
#include "lamina/probes/survey.h"

namespace {

using namespace lamina;

double seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::vector<Prompt> corpus(const std::vector<Prompt>& pieces, std::int64_t tokens) {
  std::vector<Prompt> out;
  std::int64_t have = 0;
  for (std::size_t i = 0; have < tokens; ++i) {
    Prompt prompt = pieces[i % pieces.size()];
    prompt.id = std::to_string(i);
    have += static_cast<std::int64_t>(prompt.ids.size());
    out.push_back(std::move(prompt));
  }
  return out;
}

std::int64_t total(const std::vector<Prompt>& prompts) {
  std::int64_t tokens = 0;
  for (const Prompt& prompt : prompts) tokens += static_cast<std::int64_t>(prompt.ids.size());
  return tokens;
}

// The largest memory, MiB, of a process that does nothing but this.
double peak_of(const std::function<void()>& work) {
  const pid_t child = ::fork();
  if (child == 0) {
    work();
    ::_exit(0);
  }
  int status = 0;
  rusage usage{};
  ::wait4(child, &status, 0, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const std::int64_t tokens = argc > 3 ? std::stol(argv[3]) : 20000;
  const std::int64_t piece = argc > 4 ? std::stol(argv[4]) : 512;
  const int times = argc > 5 ? std::stoi(argv[5]) : 3;

  SurveyOptions options;
  options.exit_every = std::max<std::int64_t>(1, tokens / SurveyOptions::kExitTokens);

  // Children first: a process that has run OpenMP cannot be forked.
  const auto survey_only = [&](std::int64_t length) {
    const Model model = Model::load(argv[1]);
    const auto pieces =
        cut_prompts(read_prompts(argv[2], model.tokenizer(), model.config().d_vocab), piece,
                    model.tokenizer()->bos_id());
    Forward forward(model);
    Survey survey(forward, options);
    survey.run(corpus(pieces, length));
  };
  for (const std::int64_t length : {tokens / 4, tokens}) {
    fmt::print("{:>8} tokens: largest memory of the survey {:.0f} MiB\n", length,
               peak_of([&] { survey_only(length); }));
    std::fflush(stdout);
  }

  const Model model = Model::load(argv[1]);
  const auto pieces = cut_prompts(read_prompts(argv[2], model.tokenizer(), model.config().d_vocab),
                                  piece, model.tokenizer()->bos_id());
  const std::vector<Prompt> prompts = corpus(pieces, tokens);
  Forward forward(model);
  // The model's logits of every token, a few rows at a time, and nothing done with them.
  const std::int64_t vocab = model.config().d_vocab;
  std::vector<float> out;
  const auto logits = [&](const ActivationBlock& block) {
    constexpr std::int64_t kRows = 128;
    std::vector<std::int64_t> rows;
    for (std::int64_t first = 0; first < block.batch.tokens(); first += kRows) {
      rows.resize(static_cast<std::size_t>(std::min(kRows, block.batch.tokens() - first)));
      std::iota(rows.begin(), rows.end(), first);
      out.resize(rows.size() * static_cast<std::size_t>(vocab));
      forward.run_logits(rows, out);
    }
  };
  std::vector<double> stack, pass, survey;
  for (int i = 0; i < times; ++i) {
    stack.push_back(seconds([&] { run_live(forward, prompts, {}, {}, [](const auto&) {}); }));
    pass.push_back(seconds([&] { run_live(forward, prompts, {}, {}, logits); }));
    survey.push_back(seconds([&] {
      Survey all(forward, options);
      all.run(prompts);
    }));
  }
  const auto n = static_cast<double>(total(prompts));
  fmt::print("{:>8} tokens in pieces of {}, medians of {}:\n", total(prompts), piece, times);
  fmt::print("  blocks alone            {:8.2f} s  {:7.0f} tokens/s\n", median(stack),
             n / median(stack));
  fmt::print("  forward pass (logits)   {:8.2f} s  {:7.0f} tokens/s\n", median(pass),
             n / median(pass));
  fmt::print("  survey                  {:8.2f} s  {:7.0f} tokens/s  {:.2f} x the forward pass\n",
             median(survey), n / median(survey), median(survey) / median(pass));
  return 0;
}
