// Lets what is built on a newer system be loaded on older ones (manylinux_2_28).
#include <new>
#include <sstream>

// libstdc++ exports these constructors since GCC 9 only.
template std::basic_ostringstream<char>::basic_ostringstream();
template std::basic_stringstream<char>::basic_stringstream();

// The reference counts of newer libstdc++ read this flag of glibc 2.32; 0 says that there may be threads.
extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}

// Vectors that GCC 12 compiles call this for absurd sizes; libstdc++ exports it since GCC 11 only.
extern "C" __attribute__((visibility("hidden"), noreturn)) void s4_bad_length() __asm__(
    "_ZSt28__throw_bad_array_new_lengthv");
void s4_bad_length() { throw std::bad_array_new_length(); }
