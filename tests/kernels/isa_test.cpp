#include "kernels/support.h"

namespace lamina::kernels {
namespace {

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
