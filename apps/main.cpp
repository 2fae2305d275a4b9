#include <cstdio>

int main() {
  std::puts("lamina 0.1.0");
  return 0;
}
