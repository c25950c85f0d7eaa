// What the library exports.
#include <cstdio>
#include <mutex>
#include <utility>
#include <vector>

#define BITNET_OPS_BUILD
#include "bitnet_ops.h"
#include "ort/node.h"

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
  if (options == nullptr) {
    throw std::runtime_error(
        "RegisterCustomOps: options is NULL; give it the session options to add the operators to");
  }
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

// The header's types are those of the runtime, and opaque like ours.
struct OrtStatus* BITNET_OPS_CALL RegisterCustomOps(struct OrtSessionOptions* options,
                                                    const struct OrtApiBase* api_base) {
  using namespace bitnet::ort;
  const auto* base = reinterpret_cast<const ApiBase*>(api_base);
  const Api* api = base->GetApi(kApiVersion);
  Status* status = nullptr;
  if (api != nullptr) {
    status = Guard(*api, [&] { Register(*api, reinterpret_cast<SessionOptions*>(options)); });
  } else if (const Api* oldest = base->GetApi(1)) {
    status = oldest->CreateStatus(kFail, "bitnet-onnx operators need ONNX Runtime 1.21 or later");
  }
  return reinterpret_cast<struct OrtStatus*>(status);
}

const char* BitnetOpsVersion() { return BITNET_OPS_VERSION; }

const char* BitnetOpsIsa() {
  try {
    const bitnet::Choice& choice = bitnet::ort::AnnouncedChoice();
    return choice.kernels == nullptr ? "" : choice.kernels->isa;
  } catch (...) {
    return "";
  }
}

int BitnetOpsOperatorVersion() { return BITNET_OPS_OPERATOR_VERSION; }

int BitnetOpsOldestOperatorVersion() { return BITNET_OPS_OLDEST_OPERATOR_VERSION; }
