# Compile options shared by every target of this project; nothing here is exported.
add_library(lamina_options INTERFACE)
target_compile_options(lamina_options INTERFACE -Wall -Wextra -Wpedantic -Wshadow
  -Wno-missing-field-initializers)  # designated initialisers leave the rest at their defaults
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # False alarms of GCC 12 inside its own std::string and std::variant (GCC bugs 105329, 105593).
  target_compile_options(lamina_options INTERFACE -Wno-restrict -Wno-maybe-uninitialized)
endif()
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

# ccache makes repeated builds cheap; used if present and no other launcher was asked for.
find_program(LAMINA_CCACHE ccache)
if(LAMINA_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${LAMINA_CCACHE})
  set(CMAKE_C_COMPILER_LAUNCHER ${LAMINA_CCACHE})
endif()
if(LAMINA_FUZZ)
  # Coverage for libFuzzer everywhere; only the fuzz targets link its main program.
  target_compile_options(lamina_options INTERFACE -fsanitize=fuzzer-no-link)
  target_link_options(lamina_options INTERFACE -fsanitize=fuzzer-no-link)
endif()
