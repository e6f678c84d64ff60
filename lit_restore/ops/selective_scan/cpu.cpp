// The selective scan on the CPU: a vector of channels at a time, their states in registers.
// The formulas are those of reference.py; the layouts those of arguments.py. cpu.py calls it.
#include "cpu_backward.h"
#include "cpu_forward.h"

extern "C" int scan_forward_float(const Scan *s, const Out *o) {
  return guarded([=] { forward<float>(*s, *o); });
}
extern "C" int scan_forward_double(const Scan *s, const Out *o) {
  return guarded([=] { forward<double>(*s, *o); });
}
extern "C" int scan_backward_float(const Scan *s, const Back *o) {
  return guarded([=] { backward<float>(*s, *o); });
}
extern "C" int scan_backward_double(const Scan *s, const Back *o) {
  return guarded([=] { backward<double>(*s, *o); });
}
