#include <gtest/gtest.h>

#include "builders.h"
#include "lamina/core/gguf.h"

namespace lamina {
namespace {

using test::GgufBytes;
using test::message_of;
using test::raw;
using test::TempFolder;

GgufBytes part(std::uint16_t number, std::uint16_t count, std::string_view tensor, float value,
               std::int32_t total = 2) {
  GgufBytes g;
  g.key("split.no", 2, raw(number))
      .key("split.count", 2, raw(count))
      .key("split.tensors.count", 5, raw(total));
  if (number == 0) g.key("general.architecture", 8, GgufBytes::text("llama"));
  return g.tensor(tensor, {1}, 0, 0).with_data(raw(value));
}

float value_of(const TensorInfo* tensor) {
  float value = 0;
  if (tensor != nullptr) std::memcpy(&value, tensor->bytes.data(), sizeof value);
  return value;
}

TEST(GgufOpen, OneFile) {
  const TempFolder folder;
  GgufBytes g;
  g.key("general.architecture", 8, GgufBytes::text("gemma3"))
      .tensor("w", {1}, 0, 0)
      .with_data(raw(2.5f));
  const auto path = folder.write("m.gguf", g.file());
  const GgufFile file = open_gguf(path);
  EXPECT_EQ(file.version, 3u);
  EXPECT_EQ(file.metadata.text("general.architecture"), "gemma3");
  EXPECT_EQ(file.metadata.file(), path.string());
  EXPECT_EQ(file.store.name(), path.string());
  EXPECT_EQ(value_of(file.store.find("w")), 2.5f);
}

TEST(GgufOpen, WhatIsNoFileIsRefused) {
  const TempFolder folder;
  const std::string base = folder.path().string();
  EXPECT_EQ(message_of([&] { open_gguf(base + "/none.gguf"); }),
            base + "/none.gguf: cannot open: No such file or directory");
  EXPECT_EQ(message_of([&] { open_gguf(base); }), base + ": not a regular file");
  folder.write("empty.gguf", "");
  EXPECT_EQ(message_of([&] { open_gguf(base + "/empty.gguf"); }),
            base + "/empty.gguf: the file is empty");
}

TEST(GgufOpen, AnyPartOpensTheWholeSplitModel) {
  const TempFolder folder;
  const auto first = folder.write("m-00001-of-00002.gguf", part(0, 2, "a", 1.0f).file());
  const auto second = folder.write("m-00002-of-00002.gguf", part(1, 2, "b", 2.0f).file());
  for (const auto& path : {first, second}) {
    const GgufFile file = open_gguf(path);
    EXPECT_EQ(file.metadata.text("general.architecture"), "llama");
    ASSERT_EQ(file.store.files().size(), 2u);
    EXPECT_EQ(file.store.files()[0]->path(), first);
    EXPECT_EQ(value_of(file.store.find("a")), 1.0f);
    EXPECT_EQ(value_of(file.store.find("b")), 2.0f);
  }
}

TEST(GgufOpen, SplitPartsMustAgree) {
  const TempFolder folder;
  const std::string base = folder.path().string();
  const std::string first = base + "/m-00001-of-00002.gguf",
                    second = base + "/m-00002-of-00002.gguf";
  const auto refusal = [&] { return message_of([&] { open_gguf(first); }); };
  folder.write("m-00001-of-00002.gguf", part(0, 2, "a", 1.0f).file());
  EXPECT_EQ(refusal(), second + ": cannot open: No such file or directory");
  folder.write("m-00002-of-00002.gguf", part(0, 2, "b", 1.0f).file());
  EXPECT_EQ(refusal(), second + ": the metadata say part 1 of 2, expected part 2 of 2");
  folder.write("m-00002-of-00002.gguf", part(1, 3, "b", 1.0f).file());
  EXPECT_EQ(refusal(), second + ": the metadata say part 2 of 3, expected part 2 of 2");
  folder.write("m-00002-of-00002.gguf", part(1, 2, "a", 1.0f).file());
  EXPECT_EQ(refusal(), first + ": tensor \"a\" appears twice (number 0 and 1)");
  folder.write("m-00002-of-00002.gguf", part(1, 2, "b", 1.0f).file());
  folder.write("m-00001-of-00002.gguf", part(0, 2, "a", 1.0f, 3).file());
  EXPECT_EQ(refusal(), first + ": split.tensors.count is 3, but the 2 parts hold 2 tensors");
  folder.write("m-00001-of-00002.gguf", part(5, 2, "a", 1.0f).file());
  EXPECT_EQ(refusal(), first + ": split.no is 5, expected 0 to 1");
  folder.write("renamed.gguf", part(0, 2, "a", 1.0f).file());
  EXPECT_EQ(message_of([&] { open_gguf(base + "/renamed.gguf"); }),
            base +
                "/renamed.gguf: the metadata say part 1 of 2, so the file's name must end in "
                "\"-00001-of-00002.gguf\"");
  GgufBytes many;
  many.key("split.count", 10, raw(std::uint64_t{1} << 40));
  folder.write("many.gguf", many.file());
  EXPECT_EQ(message_of([&] { open_gguf(base + "/many.gguf"); }),
            base + "/many.gguf: split.count is 1099511627776, expected 1 to 65535");
}

}  // namespace
}  // namespace lamina
