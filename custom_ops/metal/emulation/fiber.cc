// Switching costs a few instructions on x86-64 and arm64: ucontext, the fallback, makes two system calls.
#include "fiber.h"

#include <cstdint>
#include <cstring>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define BITNET_FIBER_ASAN 1
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define BITNET_FIBER_ASAN 1
#endif
#if defined(BITNET_FIBER_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__) || defined(__aarch64__)
extern "C" void bitnet_fiber_switch(void** save, void* load);
extern "C" void bitnet_fiber_begin();
#else
#include <ucontext.h>
#endif

namespace bitnet::emulation {
namespace {

constexpr std::size_t kStackBytes = 128 * 1024;

}  // namespace

struct Fiber::State {
  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStackBytes]};
  Entry entry = nullptr;
  void* argument = nullptr;
  bool done = true;
#if defined(__x86_64__) || defined(__aarch64__)
  void* inside = nullptr;
  void* outside = nullptr;
#else
  ucontext_t inside, outside;
#endif
  // What AddressSanitizer must know of the two stacks.
  void* fake_inside = nullptr;
  void* fake_outside = nullptr;
  const void* outside_bottom = nullptr;
  std::size_t outside_bytes = 0;

  void Enter() {
#if defined(BITNET_FIBER_ASAN)
    __sanitizer_start_switch_fiber(&fake_outside, stack.get(), kStackBytes);
#endif
#if defined(__x86_64__) || defined(__aarch64__)
    bitnet_fiber_switch(&outside, inside);
#else
    swapcontext(&outside, &inside);
#endif
#if defined(BITNET_FIBER_ASAN)
    __sanitizer_finish_switch_fiber(fake_outside, nullptr, nullptr);
#endif
  }

  void Leave() {
#if defined(BITNET_FIBER_ASAN)
    __sanitizer_start_switch_fiber(done ? nullptr : &fake_inside, outside_bottom, outside_bytes);
#endif
#if defined(__x86_64__) || defined(__aarch64__)
    bitnet_fiber_switch(&inside, outside);
#else
    swapcontext(&inside, &outside);
#endif
    Entered();
  }

  void Entered() {
#if defined(BITNET_FIBER_ASAN)
    __sanitizer_finish_switch_fiber(fake_inside, &outside_bottom, &outside_bytes);
#endif
  }

  void Run() {
    Entered();
    entry(argument);
    done = true;
    Leave();  // for good
  }

  static void Trampoline(State* state) { state->Run(); }
};

}  // namespace bitnet::emulation

// The first switch to a fiber returns into bitnet_fiber_begin, which finds the function and its argument in two
// registers that every function preserves.
#if defined(__APPLE__)
#define BITNET_SYMBOL(name) "_" name
#else
#define BITNET_SYMBOL(name) name
#endif
#if defined(__x86_64__)
asm(".text\n"
    ".globl " BITNET_SYMBOL("bitnet_fiber_switch") "\n" BITNET_SYMBOL("bitnet_fiber_switch") ":\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".globl " BITNET_SYMBOL("bitnet_fiber_begin") "\n" BITNET_SYMBOL("bitnet_fiber_begin") ":\n"
    "  movq %r12, %rdi\n"
    "  callq *%r13\n"
    "  ud2\n");
#elif defined(__aarch64__)
asm(".text\n"
    ".globl " BITNET_SYMBOL("bitnet_fiber_switch") "\n" BITNET_SYMBOL("bitnet_fiber_switch") ":\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp, #0]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n"
    "  stp x25, x26, [sp, #48]\n  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n  str x9, [x0]\n"
    "  mov sp, x1\n"
    "  ldp x19, x20, [sp, #0]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n"
    "  ldp x25, x26, [sp, #48]\n  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n"
    "  ret\n"
    ".globl " BITNET_SYMBOL("bitnet_fiber_begin") "\n" BITNET_SYMBOL("bitnet_fiber_begin") ":\n"
    "  mov x0, x19\n"
    "  blr x20\n"
    "  brk #1\n");
#endif

namespace bitnet::emulation {

Fiber::Fiber() : state_(std::make_unique<State>()) {}
Fiber::~Fiber() = default;

void Fiber::start(Entry entry, void* argument) {
  State& state = *state_;
  state.entry = entry;
  state.argument = argument;
  state.done = false;
  state.fake_inside = nullptr;
#if defined(BITNET_FIBER_ASAN)
  // A fiber that was given up has left frames behind.
  __asan_unpoison_memory_region(state.stack.get(), kStackBytes);
#endif
#if defined(__x86_64__)
  // [r15, r14, r13, r12, rbx, rbp, return address]: begin finds the stack aligned to 16 bytes.
  auto top = reinterpret_cast<std::uintptr_t>(state.stack.get() + kStackBytes) & ~std::uintptr_t{15};
  void** frame = reinterpret_cast<void**>(top) - 7;
  std::memset(frame, 0, 7 * sizeof(void*));
  frame[2] = reinterpret_cast<void*>(&State::Trampoline);
  frame[3] = &state;
  frame[6] = reinterpret_cast<void*>(&bitnet_fiber_begin);
  state.inside = frame;
#elif defined(__aarch64__)
  auto top = reinterpret_cast<std::uintptr_t>(state.stack.get() + kStackBytes) & ~std::uintptr_t{15};
  void** frame = reinterpret_cast<void**>(top) - 20;
  std::memset(frame, 0, 20 * sizeof(void*));
  frame[0] = &state;
  frame[1] = reinterpret_cast<void*>(&State::Trampoline);
  frame[11] = reinterpret_cast<void*>(&bitnet_fiber_begin);
  state.inside = frame;
#else
  getcontext(&state.inside);
  state.inside.uc_stack.ss_sp = state.stack.get();
  state.inside.uc_stack.ss_size = kStackBytes;
  state.inside.uc_link = nullptr;
  static thread_local State* starting;
  starting = &state;
  makecontext(&state.inside, +[] { starting->Run(); }, 0);
#endif
}

void Fiber::resume() { state_->Enter(); }
void Fiber::yield() { state_->Leave(); }

}  // namespace bitnet::emulation
