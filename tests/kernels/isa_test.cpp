#include <cstdlib>

#include "kernels/support.h"

namespace lamina::kernels {
namespace {

// CTest runs this test again with LAMINA_ISA set, each time in a process of its own.
TEST(IsaEnvironment, IsObeyed) {
  const char* wanted = std::getenv("LAMINA_ISA");
  if (wanted == nullptr) GTEST_SKIP() << "LAMINA_ISA is not set";
  const std::string_view name = wanted;
  if (name == "generic") {
    EXPECT_EQ(isa(), name);
  } else {
    EXPECT_THROW(isa(), UsageError);
  }
}

TEST(Isa, NamesAreCheckedAndChosen) {
  for (const std::string& name : isas()) {
    select_isa(name.c_str());
    EXPECT_EQ(isa(), name);
  }
  select_isa("");
  EXPECT_EQ(isa(), isas().back());
  EXPECT_THROW(select_isa("sse9"), UsageError);
}

}  // namespace
}  // namespace lamina::kernels
