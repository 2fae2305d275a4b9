# Compile options shared by every target of this project; nothing here is exported.
add_library(lamina_options INTERFACE)
target_compile_options(lamina_options INTERFACE -Wall -Wextra -Wpedantic -Wshadow)
# Results must not depend on the compiler's choice of contraction or reassociation.
target_compile_options(lamina_options INTERFACE -ffp-contract=off -fno-math-errno)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  target_compile_options(lamina_options INTERFACE -march=x86-64-v3)
endif()
if(LAMINA_SANITIZE)
  set(_san -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_compile_options(lamina_options INTERFACE ${_san} -g1)
  target_link_options(lamina_options INTERFACE ${_san})
endif()
if(LAMINA_FUZZ)
  # Coverage for libFuzzer everywhere; only the fuzz targets link its main program.
  target_compile_options(lamina_options INTERFACE -fsanitize=fuzzer-no-link)
  target_link_options(lamina_options INTERFACE -fsanitize=fuzzer-no-link)
endif()
