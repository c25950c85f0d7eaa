// Fibers as the threads of a threadgroup, and the walk over the grid.
#include "threads.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"
#include "grid.h"

namespace bitnet::emulation {
namespace {

enum class State { kReady, kSimd, kBarrier, kDone };

struct Group;

struct Thread {
  Fiber fiber;
  State state = State::kReady;
  Site site{};
  Group* group = nullptr;
  const Kernel* kernel = nullptr;
  Arguments arguments{};
  std::exception_ptr failure;
};

// A SIMD group. Slots alternate: a lane that runs ahead must not overwrite what another has yet to read.
struct Group {
  Thread* lanes[kSimdLanes];
  Slot slots[2][kSimdLanes];
  std::uint32_t turn = 0;
};

// Threadgroup memory, each piece a heap allocation of its own for AddressSanitizer.
using Memory = std::vector<std::unique_ptr<std::vector<unsigned char>>>;

// All fibers of one threadgroup at a time; kept from one grid to the next. The device lets one thread in.
struct Machine {
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Group> groups;
  Memory variables;
  Thread* current = nullptr;
};

Machine& TheMachine() {
  static Machine machine;
  return machine;
}

std::map<std::string, const Kernel*>& Kernels() {
  static std::map<std::string, const Kernel*> kernels;
  return kernels;
}

constexpr int kPoison = 0xFF;  // NaN, and -1

std::string Describe(const Thread& thread) {
  const std::string who = "thread " + std::to_string(thread.arguments.thread_index);
  switch (thread.state) {
    case State::kDone:
      return who + " has returned";
    case State::kReady:
      return who + " runs";
    default:
      return who + " waits in " + thread.site.what + " at " + thread.site.file + ":" +
             std::to_string(thread.site.line);
  }
}

[[noreturn]] void Diverged(const Kernel& kernel, const Thread& one, const Thread& other) {
  throw std::runtime_error("kernel " + std::string(kernel.name) + " diverges: " + Describe(one) + ", " +
                           Describe(other));
}

void Entry(void* argument) {
  Thread& thread = *static_cast<Thread*>(argument);
  try {
    thread.kernel->run(thread.arguments);
  } catch (...) {
    thread.failure = std::current_exception();
  }
  thread.state = State::kDone;
}

void Wait(State state, Site site) {
  Thread& thread = *TheMachine().current;
  thread.state = state;
  thread.site = site;
  thread.fiber.yield();
}

// Runs one SIMD group until all its lanes wait at a barrier or have returned.
void RunGroup(const Kernel& kernel, Group& group, std::mt19937_64& random) {
  Machine& machine = TheMachine();
  std::uint32_t order[kSimdLanes];
  for (std::uint32_t i = 0; i < kSimdLanes; ++i) {
    order[i] = i;
  }
  while (true) {
    // A rotation and a direction are order enough, and cheaper than a permutation.
    const std::uint64_t choice = random();
    std::rotate(order, order + choice % kSimdLanes, order + kSimdLanes);
    if (choice >> 63 != 0) {
      std::reverse(order, order + kSimdLanes);
    }
    for (std::uint32_t lane : order) {
      Thread& thread = *group.lanes[lane];
      if (thread.state == State::kReady) {
        machine.current = &thread;
        thread.fiber.resume();
        if (thread.failure) {
          std::rethrow_exception(thread.failure);
        }
      }
    }
    const Thread& first = *group.lanes[0];
    for (const Thread* lane : group.lanes) {
      if (lane->state != first.state || (first.state == State::kSimd && !(lane->site == first.site))) {
        // Lanes at different barriers are told apart later, with the whole threadgroup.
        Diverged(kernel, first, *lane);
      }
    }
    if (first.state != State::kSimd) {
      return;
    }
    ++group.turn;
    for (Thread* lane : group.lanes) {
      lane->state = State::kReady;
    }
  }
}

// Runs one threadgroup to its end.
void RunThreadgroup(const Kernel& kernel, std::uint32_t count, std::mt19937_64& random) {
  Machine& machine = TheMachine();
  std::vector<std::uint32_t> order(count / kSimdLanes);
  for (std::uint32_t i = 0; i < order.size(); ++i) {
    order[i] = i;
  }
  while (true) {
    std::shuffle(order.begin(), order.end(), random);
    for (std::uint32_t group : order) {
      RunGroup(kernel, machine.groups[group], random);
    }
    const Thread& first = *machine.threads[0];
    for (std::uint32_t i = 0; i < count; ++i) {
      const Thread& thread = *machine.threads[i];
      if (thread.state != first.state || (first.state == State::kBarrier && !(thread.site == first.site))) {
        Diverged(kernel, first, thread);
      }
    }
    if (first.state == State::kDone) {
      return;
    }
    for (std::uint32_t i = 0; i < count; ++i) {
      machine.threads[i]->state = State::kReady;
    }
  }
}

}  // namespace

const Slot* Exchange(const void* value, std::size_t bytes, Site site) {
  Thread& thread = *TheMachine().current;
  const std::uint32_t turn = thread.group->turn % 2;
  if (bytes != 0) {
    std::memcpy(thread.group->slots[turn][thread.arguments.lane].bytes, value, bytes);
  }
  Group& group = *thread.group;
  Wait(State::kSimd, site);
  return group.slots[turn];
}

void Barrier(Site site) { Wait(State::kBarrier, site); }

std::uint32_t Lane() { return TheMachine().current->arguments.lane; }

void* ThreadgroupVariable(std::uint32_t index, std::size_t bytes) {
  Memory& variables = TheMachine().variables;
  if (variables.size() <= index) {
    variables.resize(index + 1);
  }
  if (variables[index] == nullptr) {
    variables[index] = std::make_unique<std::vector<unsigned char>>(bytes, static_cast<unsigned char>(kPoison));
  }
  return variables[index]->data();
}

FunctionConstant::FunctionConstant(std::uint32_t constant_index, const char* constant_name)
    : index(constant_index), name(constant_name) {}

void FunctionConstant::Missing() const {
  throw std::runtime_error("function constant " + std::to_string(index) + " (" + name +
                           ") is used, but the pipeline was made without it");
}

Kernel::Kernel(const char* kernel_name, void (*kernel_run)(const Arguments&),
               List<const BufferUse> kernel_buffers, List<FunctionConstant* const> kernel_constants)
    : name(kernel_name), run(kernel_run), buffers(kernel_buffers), constants(kernel_constants) {
  Kernels()[name] = this;
}

const Kernel* FindKernel(const std::string& name) {
  const auto found = Kernels().find(name);
  return found == Kernels().end() ? nullptr : found->second;
}

void Run(const GridRun& run, std::uint64_t seed) {
  const Kernel& kernel = *run.kernel;
  const gpu::Grid threads = run.threads, threadgroups = run.threadgroups;
  const std::uint64_t all = std::uint64_t{threads.x} * threads.y * threads.z;
  if (all == 0 || all > kMaxThreads || all % kSimdLanes != 0) {
    throw std::runtime_error("kernel " + std::string(kernel.name) + ": a threadgroup of " +
                             std::to_string(all) +
                             " threads: it must be whole SIMD groups of 32, at most 1024 threads");
  }
  if (threadgroups.x == 0 || threadgroups.y == 0 || threadgroups.z == 0) {
    throw std::runtime_error("kernel " + std::string(kernel.name) + ": the grid is empty");
  }
  for (const BufferUse& use : kernel.buffers) {
    if (run.buffers[use.index] == nullptr && (use.needed == nullptr || use.needed())) {
      throw std::runtime_error("kernel " + std::string(kernel.name) + ": buffer " + std::to_string(use.index) +
                               " is not bound");
    }
  }
  const auto count = static_cast<std::uint32_t>(all);
  Machine& machine = TheMachine();
  while (machine.threads.size() < count) {
    machine.threads.push_back(std::make_unique<Thread>());
  }
  machine.groups.resize(std::max<std::size_t>(machine.groups.size(), count / kSimdLanes));
  machine.variables.clear();
  Memory dynamic;
  std::array<void*, kMaxBindings> pointers;
  for (std::uint32_t i = 0; i < kMaxBindings; ++i) {
    dynamic.push_back(std::make_unique<std::vector<unsigned char>>(run.memory[i]));
    pointers[i] = run.memory[i] == 0 ? nullptr : dynamic.back()->data();
  }
  std::mt19937_64 random(seed);
  const std::uint64_t grid = std::uint64_t{threadgroups.x} * threadgroups.y * threadgroups.z;
  for (std::uint64_t number = 0; number < grid; ++number) {
    // Threadgroups run in any order as well.
    const std::uint64_t place = seed % 2 == 0 ? number : grid - 1 - number;
    const Position position{static_cast<std::uint32_t>(place % threadgroups.x),
                            static_cast<std::uint32_t>(place / threadgroups.x % threadgroups.y),
                            static_cast<std::uint32_t>(place / threadgroups.x / threadgroups.y)};
    for (Memory* pieces : {&machine.variables, &dynamic}) {
      for (const auto& piece : *pieces) {
        if (piece != nullptr) {
          std::fill(piece->begin(), piece->end(), static_cast<unsigned char>(kPoison));
        }
      }
    }
    for (std::uint32_t i = 0; i < count; ++i) {
      Thread& thread = *machine.threads[i];
      thread.state = State::kReady;
      thread.group = &machine.groups[i / kSimdLanes];
      thread.group->lanes[i % kSimdLanes] = &thread;
      thread.kernel = &kernel;
      thread.failure = nullptr;
      thread.arguments = {run.buffers.data(),
                          pointers.data(),
                          position,
                          {i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y},
                          {threads.x, threads.y, threads.z},
                          {threadgroups.x, threadgroups.y, threadgroups.z},
                          i,
                          i / kSimdLanes,
                          i % kSimdLanes};
      thread.fiber.start(Entry, &thread);
    }
    RunThreadgroup(kernel, count, random);
  }
}

}  // namespace bitnet::emulation
