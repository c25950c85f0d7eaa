// The threads of a threadgroup: what the shaders' view of a GPU (include/metal_stdlib) and the device share.
//
// Each GPU thread is a fiber. Barriers and SIMD-group operations are the only places where one thread waits for
// others; between them threads run one after the other, in an order that changes with the seed: what lacks a
// barrier shows in the results. A thread that others wait for in vain - it has returned, or waits somewhere
// else - is an error that names kernel and lines.
#ifndef BITNET_METAL_EMULATION_THREADS_H_
#define BITNET_METAL_EMULATION_THREADS_H_

#include <cstddef>
#include <cstdint>

namespace bitnet::emulation {

constexpr std::uint32_t kSimdLanes = 32;
constexpr std::uint32_t kMaxThreads = 1024;
constexpr std::uint32_t kMaxBindings = 31;  // of Metal
constexpr std::size_t kSlotBytes = 64;

// Where a thread waits.
struct Site {
  const char* what;
  const char* file;
  int line;

  bool operator==(const Site& other) const {
    return line == other.line && what == other.what && file == other.file;
  }
};

// What one lane shows to the others of its SIMD group.
struct Slot {
  alignas(16) unsigned char bytes[kSlotBytes];
};

// Waits for the SIMD group; gives what all its lanes have shown, until the next exchange.
const Slot* Exchange(const void* value, std::size_t bytes, Site site);
// Waits for the threadgroup.
void Barrier(Site site);
std::uint32_t Lane();

// Memory of the threadgroup: the variable that is declared as number `index` in the kernel.
void* ThreadgroupVariable(std::uint32_t index, std::size_t bytes);

struct Position {
  std::uint32_t x, y, z;
};

// One thread's arguments.
struct Arguments {
  void* const* buffers;       // kMaxBindings; null where there is none
  void* const* threadgroups;  // memory arguments, likewise
  Position threadgroup_position, thread_position_in_threadgroup, threads_per_threadgroup, threadgroups_per_grid;
  std::uint32_t thread_index, simdgroup, lane;
};

// A value that is set for each pipeline.
struct FunctionConstant {
  FunctionConstant(std::uint32_t index, const char* name);
  std::uint32_t value() const {
    if (!set) {
      Missing();
    }
    return current;
  }
  [[noreturn]] void Missing() const;

  std::uint32_t index;
  const char* name;
  std::uint32_t current = 0;
  bool set = false;
};

struct BufferUse {
  std::uint32_t index;
  bool (*needed)();  // null: always
};

template <typename T>
struct List {
  T* data;
  std::size_t count;

  T* begin() const { return data; }
  T* end() const { return data + count; }
};

// A kernel of the shaders. Constructing one makes it known.
struct Kernel {
  Kernel(const char* name, void (*run)(const Arguments&), List<const BufferUse> buffers,
         List<FunctionConstant* const> constants);

  const char* name;
  void (*run)(const Arguments&);
  List<const BufferUse> buffers;
  List<FunctionConstant* const> constants;  // of its file of shaders
};

}  // namespace bitnet::emulation

#endif  // BITNET_METAL_EMULATION_THREADS_H_
