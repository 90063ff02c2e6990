/* A libcuda that has no GPU and knows which context is current in which thread.
 *
 * Of NVIDIA's driver API it has the functions that a stream's context is asked for with, written after the
 * documentation of the CUDA driver API (context and stream management):
 * - each host thread has a stack of contexts of its own, empty at first; the one on top is current;
 * - cuStreamGetCtx returns the context that a stream was created in, whatever is current. For the default
 *   streams, which are the handles 0, CU_STREAM_LEGACY and CU_STREAM_PER_THREAD, it returns the current
 *   context, and CUDA_ERROR_INVALID_CONTEXT where none is current.
 * It prints nothing; calls are counted, for whoever asks.
 */
#include <stddef.h>
#include <stdint.h>

typedef int CUresult;
typedef int CUdevice;
typedef struct context { CUdevice device; } *CUcontext;
typedef struct stream { CUcontext context; } *CUstream;

enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, INVALID_HANDLE = 400 };
enum { DEVICES = 2, DEPTH = 16, STREAMS = 64 };

static struct context primary[DEVICES] = {{0}, {1}};
static struct stream streams[STREAMS];
static int stream_count;
static _Thread_local CUcontext stack[DEPTH];
static _Thread_local int depth;

int stand_in_pushes[DEVICES]; /* how often each device's context was made current */

static CUcontext current(void) { return depth ? stack[depth - 1] : NULL; }

CUresult cuInit(unsigned flags) { return flags ? INVALID_VALUE : SUCCESS; }

CUresult cuDriverGetVersion(int *version)
{
    *version = 13000;
    return SUCCESS;
}

CUresult cuDeviceGetCount(int *count)
{
    *count = DEVICES;
    return SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
    if (ordinal < 0 || ordinal >= DEVICES)
        return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
    if (device < 0 || device >= DEVICES)
        return INVALID_DEVICE;
    *context = &primary[device];
    return SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context)
{
    *context = current();
    return SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context)
{
    if (depth)
        depth--;
    if (context)
        stack[depth++] = context;
    return SUCCESS;
}

CUresult cuCtxPushCurrent_v2(CUcontext context)
{
    if (!context)
        return INVALID_CONTEXT;
    if (depth == DEPTH)
        return INVALID_VALUE;
    stack[depth++] = context;
    stand_in_pushes[context->device]++;
    return SUCCESS;
}

CUresult cuCtxPushCurrent(CUcontext context) { return cuCtxPushCurrent_v2(context); }

CUresult cuCtxPopCurrent_v2(CUcontext *context)
{
    if (!depth)
        return INVALID_CONTEXT;
    depth--;
    if (context)
        *context = stack[depth];
    return SUCCESS;
}

CUresult cuCtxPopCurrent(CUcontext *context) { return cuCtxPopCurrent_v2(context); }

CUresult cuCtxGetDevice(CUdevice *device)
{
    if (!current())
        return INVALID_CONTEXT;
    *device = current()->device;
    return SUCCESS;
}

CUresult cuStreamCreate(CUstream *stream, unsigned flags)
{
    (void)flags;
    if (!current())
        return INVALID_CONTEXT;
    if (stream_count == STREAMS)
        return INVALID_VALUE;
    streams[stream_count].context = current();
    *stream = &streams[stream_count++];
    return SUCCESS;
}

CUresult cuStreamGetCtx(CUstream stream, CUcontext *context)
{
    if ((uintptr_t)stream <= 2) { /* the default streams */
        if (!current())
            return INVALID_CONTEXT;
        *context = current();
        return SUCCESS;
    }
    if (stream < streams || stream >= streams + stream_count)
        return INVALID_HANDLE;
    *context = stream->context;
    return SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **name)
{
    switch (error) {
    case SUCCESS: *name = "CUDA_SUCCESS"; break;
    case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; break;
    case INVALID_DEVICE: *name = "CUDA_ERROR_INVALID_DEVICE"; break;
    case INVALID_CONTEXT: *name = "CUDA_ERROR_INVALID_CONTEXT"; break;
    case INVALID_HANDLE: *name = "CUDA_ERROR_INVALID_HANDLE"; break;
    default: *name = NULL; return INVALID_VALUE;
    }
    return SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text)
{
    return cuGetErrorName(error, text);
}
