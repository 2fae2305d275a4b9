#include "lamina/patching/metric.h"
