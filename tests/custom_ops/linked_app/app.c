/* Continues three token ids with bitnet-tiny: C of 1989 and C++ alike, and no header but bitnet_ops.h.
 *
 *   app MODEL none|link|PATH-OF-THE-LIBRARY STEPS
 *
 * ONNX Runtime's table of functions is read by position, since its wheels ship no headers: an application includes
 * onnxruntime_c_api.h instead.
 */
#include "bitnet_ops.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif
typedef void (*Entry)(void);
struct OrtApiBase {
  const Entry* (*GetApi)(unsigned int);
  const char* (*GetVersionString)(void);
};
const struct OrtApiBase* OrtGetApiBase(void);
#ifdef __cplusplus
}
#endif

typedef long Int64; /* LP64, which all systems are on which this test runs */
typedef struct OrtStatus* Status;

#define LAYERS 6
#define VOCABULARY 4096
#define MAX_TOKENS 64

static const Entry* api;

static void check(Status status) {
  if (status != NULL) {
    const char* (*message)(const struct OrtStatus*) = (const char* (*)(const struct OrtStatus*))api[2];
    fprintf(stderr, "%s\n", message(status));
    exit(1);
  }
}

static void* tensor(void* memory, void* data, size_t bytes, const Int64* shape, size_t rank, int type) {
  void* value = NULL;
  check(((Status(*)(void*, void*, size_t, const Int64*, size_t, int, void**))api[49])(memory, data, bytes, shape,
                                                                                       rank, type, &value));
  return value;
}

int main(int count, char** arguments) {
  char names[2 + 2 * LAYERS][48];
  const char* inputs[2 + 2 * LAYERS];
  const char* outputs[1];
  void* values[2 + 2 * LAYERS];
  void *environment = NULL, *options = NULL, *session = NULL, *memory = NULL, *logits = NULL;
  Int64 ids[MAX_TOKENS] = {5, 6, 7}, mask[MAX_TOKENS], shape[2], past[4] = {1, 2, 0, 64};
  float nothing[1] = {0};
  float* row = NULL;
  Int64 length = 3, end;
  unsigned int bits;
  int i;

  if (count != 4 || atoi(arguments[3]) > MAX_TOKENS - 3) {
    return 2;
  }
  if (strcmp(arguments[2], "link") == 0) {
    printf("%s %d %d %d\n", BitnetOpsVersion(), BitnetOpsOldestOperatorVersion(), BitnetOpsOperatorVersion(),
           BITNET_OPS_VERSION_NUMBER);
  }
  api = OrtGetApiBase()->GetApi(21);
  check(((Status(*)(int, const char*, void**))api[3])(3, "app", &environment));
  check(((Status(*)(void**))api[10])(&options));
  if (strcmp(arguments[2], "link") == 0) {
    check(RegisterCustomOps((struct OrtSessionOptions*)options, OrtGetApiBase()));
  } else if (strcmp(arguments[2], "none") != 0) {
    check(((Status(*)(void*, const char*))api[228])(options, arguments[2]));
  }
  check(((Status(*)(void*, const char*, void*, void**))api[7])(environment, arguments[1], options, &session));
  check(((Status(*)(int, int, void**))api[69])(0, 0, &memory));

  outputs[0] = "logits";
  strcpy(names[0], "input_ids");
  strcpy(names[1], "attention_mask");
  for (i = 0; i < 2 * LAYERS; ++i) {
    sprintf(names[2 + i], "past_key_values.%d.%s", i / 2, i % 2 == 0 ? "key" : "value");
    values[2 + i] = tensor(memory, nothing, 0, past, 4, 1);
  }
  for (i = 0; i < 2 + 2 * LAYERS; ++i) {
    inputs[i] = names[i];
  }
  for (i = 0; i < MAX_TOKENS; ++i) {
    mask[i] = 1;
  }
  for (end = length + atoi(arguments[3]); length < end; ++length) {
    int best = 0;
    shape[0] = 1;
    shape[1] = length;
    values[0] = tensor(memory, ids, (size_t)length * sizeof(Int64), shape, 2, 7);
    values[1] = tensor(memory, mask, (size_t)length * sizeof(Int64), shape, 2, 7);
    logits = NULL;
    check(((Status(*)(void*, const void*, const char* const*, void* const*, size_t, const char* const*, size_t,
                      void**))api[9])(session, NULL, inputs, values, 2 + 2 * LAYERS, outputs, 1, &logits));
    check(((Status(*)(void*, void**))api[51])(logits, (void**)&row));
    row += (length - 1) * VOCABULARY;
    for (i = 1; i < VOCABULARY; ++i) {
      best = row[i] > row[best] ? i : best;
    }
    memcpy(&bits, &row[best], sizeof bits);
    printf("%d %08x\n", best, bits);
    ids[length] = best;
    ((void (*)(void*))api[96])(logits);
    ((void (*)(void*))api[96])(values[0]);
    ((void (*)(void*))api[96])(values[1]);
  }
  ((void (*)(void*))api[95])(session);
  ((void (*)(void*))api[92])(environment);
  return 0;
}
