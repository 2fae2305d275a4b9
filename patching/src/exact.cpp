#include "lamina/patching/exact.h"
