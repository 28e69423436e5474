// What kernel-builder generates under this name, for builds without it.
#pragma once

#include <Python.h>

#define S4_JOIN_(a, b) a##b
#define S4_JOIN(a, b) S4_JOIN_(a, b)
#define S4_STRING_(a) #a
#define S4_STRING(a) S4_STRING_(a)
#define STABLE_TORCH_LIBRARY_EXPAND(name, module) STABLE_TORCH_LIBRARY(name, module)
#define STABLE_TORCH_LIBRARY_IMPL_EXPAND(name, key, module) STABLE_TORCH_LIBRARY_IMPL(name, key, module)

// An empty module: to import it is to load the library, which registers the operations.
#define REGISTER_EXTENSION(name)                                                                   \
  PyMODINIT_FUNC S4_JOIN(PyInit_, name)(void) {                                                    \
    static PyModuleDef module = {                                                                  \
        PyModuleDef_HEAD_INIT, S4_STRING(name), nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr}; \
    return PyModule_Create(&module);                                                               \
  }
