// What compilers call in the standard library and old copies of it lack: the library opens where libstdc++ is
// that of GCC 5, whatever newer compiler built it. Part of the loadable library on Linux only, which hides it.
#include <new>

#if defined(_GLIBCXX_RELEASE) && _GLIBCXX_RELEASE >= 11
namespace std {

// GLIBCXX_3.4.29; containers call it when their size would overflow.
void __throw_bad_array_new_length() { throw bad_array_new_length(); }

}  // namespace std
#endif
