// What the library exports.
#include <cstdio>
#include <mutex>
#include <utility>
#include <vector>

#include "ort/node.h"

#if defined(_WIN32)
#define BITNET_EXPORT extern "C" __declspec(dllexport)
#else
#define BITNET_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace bitnet::ort {
namespace {

constexpr const char* kMark = "bitnet_onnx.operators_registered";

// One domain for each runtime in the process. Session options keep pointers to it for as long as they live, and
// the runtime may be gone when this library is unloaded: so it is never released.
CustomOpDomain* DomainOf(const Api& api) {
  static std::mutex mutex;
  static std::vector<std::pair<const Api*, CustomOpDomain*>> domains;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const auto& [known, domain] : domains) {
    if (known == &api) {
      return domain;
    }
  }
  CustomOpDomain* domain = nullptr;
  Check(api, api.CreateCustomOpDomain("bitnet", &domain));
  Check(api, api.CustomOpDomain_Add(domain, &kBitLinearOp));
  Check(api, api.CustomOpDomain_Add(domain, &kBitEmbeddingOp));
  Check(api, api.CustomOpDomain_Add(domain, &kGroupQueryAttentionOp));
  Check(api, api.CustomOpDomain_Add(domain, &kInt8GroupQueryAttentionOp));
  Check(api, api.CustomOpDomain_Add(domain, &kGatedActivationOp));
  domains.emplace_back(&api, domain);
  return domain;
}

// The choice of kernels; its warning is printed by the first caller only.
const Choice& AnnouncedChoice() {
  const Choice& choice = ChosenKernels();
  [[maybe_unused]] static const bool announced = [&choice] {
    if (!choice.warning.empty()) {
      std::fprintf(stderr, "%s\n", choice.warning.c_str());  // no session and so no logger exists yet
    }
    return true;
  }();
  return choice;
}

void Register(const Api& api, SessionOptions* options) {
  const Choice& choice = AnnouncedChoice();
  if (choice.kernels == nullptr) {
    throw std::runtime_error(choice.error);
  }
  // The runtime refuses a domain that is added twice; a mark in the options makes registration repeatable.
  int registered = 0;
  Check(api, api.HasSessionConfigEntry(options, kMark, &registered));
  if (registered == 0) {
    Check(api, api.AddCustomOpDomain(options, DomainOf(api)));
    Check(api, api.AddSessionConfigEntry(options, kMark, "1"));
  }
}

}  // namespace
}  // namespace bitnet::ort

BITNET_EXPORT bitnet::ort::Status* BITNET_ORT_CALL RegisterCustomOps(bitnet::ort::SessionOptions* options,
                                                                     const bitnet::ort::ApiBase* base) {
  using bitnet::ort::Guard;
  const bitnet::ort::Api* api = base->GetApi(bitnet::ort::kApiVersion);
  if (api == nullptr) {
    const bitnet::ort::Api* oldest = base->GetApi(1);
    return oldest == nullptr ? nullptr
                             : oldest->CreateStatus(bitnet::ort::kFail,
                                                    "bitnet-onnx operators need ONNX Runtime 1.21 or later");
  }
  return Guard(*api, [&] { bitnet::ort::Register(*api, options); });
}

// Version of the library, as in the Python package.
BITNET_EXPORT const char* BitnetOpsVersion() { return BITNET_OPS_VERSION; }

// Name of the instruction set in use; empty when BITNET_ONNX_ISA cannot be honoured.
BITNET_EXPORT const char* BitnetOpsIsa() {
  try {
    const bitnet::Choice& choice = bitnet::ort::AnnouncedChoice();
    return choice.kernels == nullptr ? "" : choice.kernels->isa;
  } catch (...) {
    return "";
  }
}
