// One thread of control with its own stack, switched by hand: a GPU thread of the emulation.
#ifndef BITNET_METAL_EMULATION_FIBER_H_
#define BITNET_METAL_EMULATION_FIBER_H_

#include <cstddef>
#include <memory>

namespace bitnet::emulation {

class Fiber {
 public:
  using Entry = void (*)(void*);

  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next `resume` calls entry(argument) on the empty stack. What ran on it before is forgotten.
  void start(Entry entry, void* argument);
  // Runs until the fiber calls `yield` or its entry returns. Not called from within a fiber.
  void resume();
  // Back to the caller of `resume`; called on this fiber.
  void yield();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace bitnet::emulation

#endif  // BITNET_METAL_EMULATION_FIBER_H_
