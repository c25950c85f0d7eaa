// The same program as C++.
#include "app.c"
