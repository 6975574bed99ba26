// Answers requests out of a SavedModel through TensorFlow's C API, as TF Serving does through its C++ API: no Python.
//
//   ask_saved_model DIRECTORY [OP_LIBRARY ...]
//
// Reads requests from standard input until it ends, and writes an answer to standard output for each.
//
//   request:  INPUTS OUTPUTS                        how many of each
//             NAME DTYPE RANK DIM ...  elements     of each input
//             NAME                                  of each output
//   answer:   ok OUTPUTS
//             DTYPE RANK DIM ...  elements          of each output
//   or:       error CODE  text                      the TF_Code, and a string that says why
//
// A NAME is a tensor's in the graph, "serving_default_text:0", as the signature of the SavedModel gives it. DTYPE is
// the number of a TF_DataType. Each of these is a line. Elements that are numbers follow as their bytes and a line
// feed; each string as its length in bytes, a line feed, its bytes, and a line feed.
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tensorflow/c/c_api.h>
#include <tensorflow/c/tf_tstring.h>

enum { MAX_TENSORS = 16, MAX_RANK = 8, MAX_NAME = 512 };

// TF Serving starts with XLA off by calling this C++ function, which the C API lacks.
extern void disable_xla(void) __asm__("_ZN10tensorflow21DisableXlaCompilationEv");

typedef struct {
  int num_inputs, num_outputs;
  char input_names[MAX_TENSORS][MAX_NAME], output_names[MAX_TENSORS][MAX_NAME];
  TF_Tensor *inputs[MAX_TENSORS], *outputs[MAX_TENSORS];
} Request;

// Ends the program, unless `condition` holds: a request that cannot be read leaves no place to go on from.
static void require(int condition, const char* format, ...) {
  if (condition) return;
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  exit(EXIT_FAILURE);
}

static void read_bytes(void* data, size_t size) {
  require(fread(data, 1, size, stdin) == size && getchar() == '\n', "%zu bytes and a line feed were expected.", size);
}

static void read_string(TF_TString* string) {
  size_t size;
  require(scanf("%zu", &size) == 1 && getchar() == '\n', "The length of a string was expected.");
  char* bytes = malloc(size + 1);
  require(bytes != NULL, "No memory for a string of %zu bytes.", size);
  read_bytes(bytes, size);
  TF_StringInit(string);
  TF_StringCopy(string, bytes, size);
  free(bytes);
}

static void write_string(const char* bytes, size_t size) {
  printf("%zu\n", size);
  fwrite(bytes, 1, size, stdout);
  putchar('\n');
}

// TensorFlow calls this when the last owner of a string tensor is gone.
static void free_strings(void* data, size_t size, void* unused) {
  (void)unused;
  for (size_t i = 0; i < size / sizeof(TF_TString); ++i) TF_StringDealloc((TF_TString*)data + i);
  free(data);
}

static TF_Tensor* read_tensor(void) {
  int dtype, rank;
  int64_t dims[MAX_RANK];
  size_t count = 1;
  require(scanf("%d %d", &dtype, &rank) == 2 && 0 <= rank && rank <= MAX_RANK, "A dtype and a rank were expected.");
  for (int i = 0; i < rank; ++i) {
    require(scanf("%" SCNd64, &dims[i]) == 1 && dims[i] >= 0, "%d dimensions were expected.", rank);
    count *= (size_t)dims[i];
  }
  require(getchar() == '\n', "A header ends with a line feed.");
  if (dtype == TF_STRING) {
    TF_TString* strings = malloc(count * sizeof(TF_TString) + 1);
    require(strings != NULL, "No memory for %zu strings.", count);
    for (size_t i = 0; i < count; ++i) read_string(&strings[i]);
    return TF_NewTensor(TF_STRING, dims, rank, strings, count * sizeof(TF_TString), free_strings, NULL);
  }
  size_t size = TF_DataTypeSize((TF_DataType)dtype);
  require(size > 0, "Elements of dtype %d have no fixed size.", dtype);
  TF_Tensor* tensor = TF_AllocateTensor((TF_DataType)dtype, dims, rank, count * size);
  read_bytes(TF_TensorData(tensor), count * size);
  return tensor;
}

static void write_tensor(const TF_Tensor* tensor) {
  printf("%d %d", (int)TF_TensorType(tensor), TF_NumDims(tensor));
  for (int i = 0; i < TF_NumDims(tensor); ++i) printf(" %" PRId64, TF_Dim(tensor, i));
  putchar('\n');
  if (TF_TensorType(tensor) == TF_STRING) {
    const TF_TString* strings = TF_TensorData(tensor);
    for (int64_t i = 0; i < TF_TensorElementCount(tensor); ++i) {
      write_string(TF_StringGetDataPointer(&strings[i]), TF_StringGetSize(&strings[i]));
    }
  } else {
    fwrite(TF_TensorData(tensor), 1, TF_TensorByteSize(tensor), stdout);
    putchar('\n');
  }
}

static void read_name(char name[MAX_NAME]) {
  require(scanf("%511s", name) == 1, "The name of a tensor was expected.");
}

// Whether there is a request; it is read to its end, so that the next can follow whatever becomes of this one.
static int read_request(Request* request) {
  memset(request, 0, sizeof *request);
  int* counts[] = {&request->num_inputs, &request->num_outputs};
  int found = scanf("%d %d", counts[0], counts[1]);
  if (found == EOF) return 0;
  require(found == 2, "The numbers of inputs and outputs were expected.");
  for (int i = 0; i < 2; ++i) {
    require(0 <= *counts[i] && *counts[i] <= MAX_TENSORS, "At most %d tensors were expected.", MAX_TENSORS);
  }
  for (int i = 0; i < request->num_inputs; ++i) {
    read_name(request->input_names[i]);
    request->inputs[i] = read_tensor();
  }
  for (int i = 0; i < request->num_outputs; ++i) read_name(request->output_names[i]);
  return 1;
}

// Finds "operation:index". The status stays as it is where the graph has it.
static TF_Output find(TF_Graph* graph, const char* name, TF_Status* status) {
  char operation[MAX_NAME];
  int index = 0;
  TF_Output output = {NULL, 0};
  if (sscanf(name, "%511[^:]:%d", operation, &index) >= 1) output.oper = TF_GraphOperationByName(graph, operation);
  if (output.oper == NULL || index < 0 || index >= TF_OperationNumOutputs(output.oper)) {
    char message[MAX_NAME + 64];
    snprintf(message, sizeof message, "The graph has no tensor \"%s\".", name);
    TF_SetStatus(status, TF_NOT_FOUND, message);
  }
  output.index = index;
  return output;
}

static void run(TF_Session* session, TF_Graph* graph, Request* request, TF_Status* status) {
  TF_Output inputs[MAX_TENSORS], outputs[MAX_TENSORS];
  TF_SetStatus(status, TF_OK, "");
  for (int i = 0; i < request->num_inputs; ++i) inputs[i] = find(graph, request->input_names[i], status);
  for (int i = 0; i < request->num_outputs; ++i) outputs[i] = find(graph, request->output_names[i], status);
  if (TF_GetCode(status) != TF_OK) return;
  TF_SessionRun(session, NULL, inputs, request->inputs, request->num_inputs, outputs, request->outputs,
                request->num_outputs, NULL, 0, NULL, status);
}

static void write_answer(const Request* request, const TF_Status* status) {
  if (TF_GetCode(status) == TF_OK) {
    printf("ok %d\n", request->num_outputs);
    for (int i = 0; i < request->num_outputs; ++i) write_tensor(request->outputs[i]);
  } else {
    printf("error %d\n", (int)TF_GetCode(status));
    write_string(TF_Message(status), strlen(TF_Message(status)));
  }
  fflush(stdout);
}

static void delete_tensors(Request* request) {
  for (int i = 0; i < MAX_TENSORS; ++i) {
    if (request->inputs[i]) TF_DeleteTensor(request->inputs[i]);
    if (request->outputs[i]) TF_DeleteTensor(request->outputs[i]);
  }
}

int main(int argc, char** argv) {
  require(argc >= 2, "Usage: %s DIRECTORY [OP_LIBRARY ...]", argv[0]);
  TF_Status* status = TF_NewStatus();
  disable_xla();
  for (int i = 2; i < argc; ++i) {
    TF_LoadLibrary(argv[i], status);
    require(TF_GetCode(status) == TF_OK, "%s: %s", argv[i], TF_Message(status));
  }
  TF_Graph* graph = TF_NewGraph();
  TF_SessionOptions* options = TF_NewSessionOptions();
  const char* tags[] = {"serve"};
  TF_Session* session = TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1, graph, NULL, status);
  require(TF_GetCode(status) == TF_OK, "%s: %s", argv[1], TF_Message(status));

  Request request;
  while (read_request(&request)) {
    run(session, graph, &request, status);
    write_answer(&request, status);
    delete_tensors(&request);
  }
  TF_DeleteSession(session, status);
  TF_DeleteSessionOptions(options);
  TF_DeleteGraph(graph);
  TF_DeleteStatus(status);
  return EXIT_SUCCESS;
}
