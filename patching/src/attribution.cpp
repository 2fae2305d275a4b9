#include "lamina/patching/attribution.h"
