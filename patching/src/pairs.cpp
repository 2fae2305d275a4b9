#include "lamina/patching/pairs.h"
