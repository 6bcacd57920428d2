// Letting the GIL go for a while.
//
// A thread that asks for the GIL while the interpreter ends never gets it: up to CPython 3.13 pthread_exit ends the thread
// instead, which in glibc unwinds its C++ frames. Destructors in them (of pybind11, of torch, of whoever called) would then
// free Python objects without the GIL, and those that are noexcept would abort. Here the thread sleeps until the process is
// gone, as it does in CPython from 3.14 on.
//
// The same may happen in any function of CPython that runs Python code. Frames that call such functions therefore hold Python
// objects by plain pointers, not by objects with destructors: unwinding then frees nothing.
#pragma once

#include <Python.h>
#include <unistd.h>

namespace sumexp::python {

// Runs body(), which touches no Python object and throws nothing, without the GIL.
template <class Body>
void without_gil(const Body& body) {
  PyThreadState* const thread = PyEval_SaveThread();
  body();
  try {
    PyEval_RestoreThread(thread);
  } catch (...) {  // the unwinding: C code throws nothing else
    for (;;) pause();
  }
}

}  // namespace sumexp::python
