#include "metal/host/plan.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <unordered_map>

#include "metal/host/placement.h"

namespace bitnet::metal {
namespace {

struct {
  std::atomic<uint64_t> calls, dispatches, copied_in, copied_out, constants_mapped, constants_copied,
      cache_address, work_bytes;
} counters;

// Places in one buffer for what is alive at one time.
class WorkSpace {
 public:
  size_t Take(size_t bytes) {
    size_t at = 0;
    auto next = blocks_.begin();
    while (next != blocks_.end() && next->offset - at < bytes) {
      at = next->offset + next->bytes;
      ++next;
    }
    blocks_.insert(next, {at, bytes});
    size_ = std::max(size_, at + bytes);
    return at;
  }

  void Give(size_t offset) {
    blocks_.erase(
        std::find_if(blocks_.begin(), blocks_.end(), [&](const Block& b) { return b.offset == offset; }));
  }

  size_t size() const { return size_; }

 private:
  struct Block {
    size_t offset, bytes;
  };
  std::vector<Block> blocks_;  // by offset
  size_t size_ = 0;
};

}  // namespace

Counters ReadCounters() {
  return {counters.calls,         counters.dispatches,       counters.copied_in,
          counters.copied_out,    counters.constants_mapped, counters.constants_copied,
          counters.cache_address, counters.work_bytes};
}

Plan::Plan(std::shared_ptr<Context> context, Graph graph, const std::vector<std::string>& inputs,
           const std::vector<std::string>& outputs)
    : context_(std::move(context)), builder_(std::move(graph)) {
  const std::vector<bool> supported = Supported(builder_);
  for (size_t place = 0; place < supported.size(); ++place) {
    if (!supported[place]) {
      throw std::runtime_error("BitNetMetal: " + builder_.graph.nodes[place].op + " '" +
                               builder_.graph.nodes[place].name + "' was claimed and cannot be run");
    }
  }
  const std::vector<Value>& values = builder_.graph.values;
  std::unordered_map<std::string, int> places;
  for (size_t place = 0; place < values.size(); ++place) {
    places.emplace(values[place].name, static_cast<int>(place));
  }
  const auto find = [&](const std::string& name) {
    const auto found = places.find(name);
    return name.empty() || found == places.end() ? kNone : found->second;
  };
  std::transform(inputs.begin(), inputs.end(), std::back_inserter(inputs_), find);
  std::transform(outputs.begin(), outputs.end(), std::back_inserter(outputs_), find);
  device_reads_.resize(values.size(), false);
  for (const auto& step : builder_.steps) {
    for (const int value : step->reads) {
      device_reads_[static_cast<size_t>(value)] = true;
    }
  }
  StoreConstants();
}

Plan::~Plan() = default;

void Plan::StoreConstants() {
  std::vector<Value>& values = builder_.graph.values;
  constants_.resize(values.size(), {nullptr, 0});
  std::vector<std::pair<size_t, const void*>> small;
  size_t bytes = 0;
  for (size_t place = 0; place < values.size(); ++place) {
    Value& value = values[place];
    if (!value.is_constant || !device_reads_[place] || value.constant.bytes == 0) {
      continue;
    }
    const void* data = value.constant.data;
    if (!value.constant.path.empty()) {
      files_.push_back(context_->Open(value.constant.path));
      if (value.constant.offset % MappedFile::kAlignment == 0) {
        constants_[place] = files_.back()->Bind(value.constant.offset, value.constant.bytes);
        counters.constants_mapped += value.constant.bytes;
        continue;
      }
      data = files_.back()->At(value.constant.offset, value.constant.bytes);
    }
    small.emplace_back(place, data);
    bytes += Aligned(value.constant.bytes);
  }
  if (bytes == 0) {
    return;
  }
  small_constants_ = context_->device().allocate(bytes);
  size_t offset = 0;
  for (const auto& [place, data] : small) {
    constants_[place] = {small_constants_.get(), offset};
    const size_t size = values[place].constant.bytes;
    std::memcpy(AddressOf(constants_[place]), data, size);
    offset += Aligned(size);
    counters.constants_copied += size;
  }
}

void Plan::Run(const ReadInput& input, const MakeOutput& output) {
  const std::lock_guard<std::mutex> lock(mutex_);
  gpu::Device& device = context_->device();
  Call call(device, builder_.graph.values);
  Begin(call, input);
  for (const auto& step : builder_.steps) {
    step->Prepare(call);
  }
  Placement placement(*context_, call);
  for (const int value : inputs_) {
    if (value != kNone && !builder_.graph.values[static_cast<size_t>(value)].is_constant) {
      placement.Input(value);
    }
  }
  for (size_t i = 0; i < outputs_.size(); ++i) {
    if (outputs_[i] == kNone) {
      throw std::runtime_error("BitNetMetal: an output of the fused node is not made by any of its nodes");
    }
    placement.Output(outputs_[i], output(i, call.ShapeOf(outputs_[i])));
  }
  placement.Contents();
  counters.copied_in += placement.CopyIn(staging_.AtLeast(device, placement.staging_bytes()));
  PlaceWork(call);
  Submit(call);
  counters.copied_out += placement.CopyOut();
  ++counters.calls;
  counters.dispatches += call.dispatches;
  if (call.cache != kNone) {
    counters.cache_address = reinterpret_cast<uintptr_t>(AddressOf(call.At(call.cache).place));
  }
}

void Plan::Begin(Call& call, const ReadInput& input) const {
  const std::vector<Value>& values = builder_.graph.values;
  call.tensors.resize(values.size());
  for (size_t place = 0; place < values.size(); ++place) {
    Tensor& tensor = call.tensors[place];
    tensor.root = static_cast<int>(place);
    if (values[place].is_constant) {
      tensor.shape = values[place].shape;
      tensor.bytes = values[place].constant.bytes;
      tensor.place = constants_[place];
      tensor.host = tensor.place.buffer == nullptr ? nullptr : AddressOf(tensor.place);
    }
  }
  for (size_t i = 0; i < inputs_.size(); ++i) {
    if (inputs_[i] != kNone && !values[static_cast<size_t>(inputs_[i])].is_constant) {
      InputTensor given = input(i);
      call.SetShape(inputs_[i], std::move(given.shape));
      call.At(inputs_[i]).host = given.data;
    }
  }
}

void Plan::Submit(Call& call) const {
  const std::unique_ptr<gpu::Commands> commands = context_->device().begin();
  call.commands = commands.get();
  for (const auto& step : builder_.steps) {
    step->Encode(call);
  }
  if (call.dispatches != 0) {
    commands->commit();
    commands->wait();
  }
}

void Plan::PlaceWork(Call& call) {
  // When a value is read last; results that are copied out are read behind the last step.
  std::vector<size_t> last(call.tensors.size(), 0);
  for (size_t step = 0; step < builder_.steps.size(); ++step) {
    for (const auto* list : {&builder_.steps[step]->reads, &builder_.steps[step]->writes}) {
      for (const int value : *list) {
        last[static_cast<size_t>(call.At(value).root)] = step;
      }
    }
  }
  for (const int value : outputs_) {
    last[static_cast<size_t>(call.At(value).root)] = builder_.steps.size();
  }
  std::vector<std::vector<int>> ends(builder_.steps.size() + 1);
  std::vector<bool> placed(call.tensors.size(), false);
  WorkSpace space;
  for (size_t step = 0; step < builder_.steps.size(); ++step) {
    for (const int value : builder_.steps[step]->writes) {
      Tensor& tensor = call.At(value);
      const auto index = static_cast<size_t>(value);
      if (tensor.root != value || tensor.place.buffer != nullptr || tensor.bytes == 0 || placed[index]) {
        continue;
      }
      placed[index] = true;
      tensor.place.offset = space.Take(Aligned(tensor.bytes));
      ends[last[index]].push_back(value);
    }
    for (const int value : ends[step]) {
      space.Give(call.At(value).place.offset);
    }
  }
  gpu::Buffer& work = work_.AtLeast(context_->device(), space.size() + kAlignment);
  for (Tensor& tensor : call.tensors) {
    if (tensor.place.buffer == nullptr) {
      tensor.place.buffer = &work;
    }
  }
  counters.work_bytes = space.size();
}

}  // namespace bitnet::metal
