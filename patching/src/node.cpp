#include "lamina/patching/node.h"
