/* A libnvidia-ml.so.1 of eight GPUs that are not there, so that the real ctypes path can be tested
 * on any machine. Written from NVML's public ABI.
 *
 * Everything is a function of CLOCK_MONOTONIC and of the file named by FAKE_NVML_CONTROL (lines
 * "key=value", read anew when it changes), so that counters run on while a client restarts:
 *
 *   gpus=8            how many                     driver=590.48.01  its version
 *   loaded_ms=N       monotonic ms at which the driver was loaded: its counters start there
 *   mig=0,1           GPUs in MIG mode             instances=0:1:0,0:2:0  gpu:gi:ci each
 *   unsupported=a,b   field ids (185, or 185.1 with the scope) and function names
 *   unknown=a,b       functions that answer NVML_ERROR_UNKNOWN
 *   lost=3            GPUs that have fallen off the bus
 *   reset_required=3  GPUs that need a reset
 *   xid=7/79/3        serial/code/gpu: told once by the event set when the serial changes
 *   init=9            what nvmlInitWithFlags returns
 *   fail=18           what every call on a device returns
 *   hang=FUNCTION     that function does not return while this stands here
 *   deaf=1            a hung call ignores SIGTERM, as a process in D state does
 *   latency_us=50     how long each call on a device takes
 *
 * With -DOLD_DRIVER it lacks the symbols and fields that came after driver 520 or so.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define MAX_GPUS 16
#define MAX_INSTANCES 64
#define LINE 256

typedef int Return;
typedef unsigned int u32;
typedef unsigned long long u64;
enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, TIMEOUT = 10, GPU_IS_LOST = 15, RESET_REQUIRED = 16,
    VERSION_MISMATCH = 25, UNKNOWN = 999
};

typedef struct {
    int gpu;
    int gi; /* -1: the GPU itself */
    int ci;
} Device;

static Device devices[MAX_GPUS];
static Device instances[MAX_INSTANCES];
static int initialised;

/* ---- control file ------------------------------------------------------------------------- */

/* Each thread reads the file for itself: no lock, and none ever sees half of it. */
static _Thread_local struct {
    char key[32];
    char value[LINE - 32];
} settings[32];
static _Thread_local int setting_count;
static _Thread_local struct timespec read_at;
static _Thread_local ino_t read_inode;

static u64 monotonic_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (u64)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void parse(FILE *file)
{
    char line[LINE];
    setting_count = 0;
    while (setting_count < 32 && fgets(line, sizeof line, file)) {
        char *equals = strchr(line, '=');
        if (!equals)
            continue;
        *equals = 0;
        equals[1 + strcspn(equals + 1, "\r\n")] = 0;
        snprintf(settings[setting_count].key, sizeof settings[0].key, "%.31s", line);
        snprintf(settings[setting_count].value, sizeof settings[0].value, "%.223s", equals + 1);
        setting_count++;
    }
}

static void read_control(void)
{
    static _Thread_local u64 checked_us;
    const char *path = getenv("FAKE_NVML_CONTROL");
    struct stat info;
    u64 now_us = monotonic_us();
    if (!path || now_us - checked_us < 1000)
        return;
    checked_us = now_us;
    if (stat(path, &info))
        return;
    if (info.st_ino == read_inode && !memcmp(&info.st_mtim, &read_at, sizeof read_at))
        return;
    FILE *file = fopen(path, "r");
    if (!file)
        return;
    parse(file);
    fclose(file);
    read_at = info.st_mtim;
    read_inode = info.st_ino;
}

static const char *text(const char *key, const char *otherwise)
{
    for (int i = 0; i < setting_count; i++)
        if (!strcmp(settings[i].key, key))
            return settings[i].value;
    return otherwise;
}

static long long number(const char *key, long long otherwise)
{
    const char *value = text(key, NULL);
    return value ? atoll(value) : otherwise;
}

static int listed(const char *key, const char *item)
{
    size_t length = strlen(item);
    for (const char *at = text(key, ""); *at; at += *at == ',') {
        size_t here = strcspn(at, ",");
        if (here == length && !strncmp(at, item, length))
            return 1;
        at += here;
    }
    return 0;
}

static int gpu_listed(const char *key, int gpu)
{
    char item[12];
    snprintf(item, sizeof item, "%d", gpu);
    return listed(key, item);
}

/* ---- what happens before any call --------------------------------------------------------- */

static void hang(const char *function)
{
    while (!strcmp(text("hang", ""), function)) {
        signal(SIGTERM, number("deaf", 0) ? SIG_IGN : SIG_DFL);
        usleep(5000);
        read_control();
    }
    signal(SIGTERM, SIG_DFL);
}

static Return enter(const char *function, const Device *device)
{
    if (!initialised)
        return UNINITIALIZED;
    read_control();
    if (!strcmp(text("hang", ""), function))
        hang(function);
    if (number("latency_us", 0))
        usleep((useconds_t)number("latency_us", 0));
    if (number("fail", 0))
        return (Return)number("fail", 0);
    if (!device)
        return INVALID_ARGUMENT;
    if (gpu_listed("lost", device->gpu))
        return GPU_IS_LOST;
    if (gpu_listed("reset_required", device->gpu))
        return RESET_REQUIRED;
    if (listed("unknown", function))
        return UNKNOWN;
    return listed("unsupported", function) ? NOT_SUPPORTED : SUCCESS;
}

#define ENTER(device)                                 \
    do {                                              \
        Return entered_ = enter(__func__, (device));  \
        if (entered_ != SUCCESS)                      \
            return entered_;                          \
    } while (0)

#define VERSIONED(struct_, number_)                                             \
    do {                                                                        \
        if ((struct_)->version != (sizeof *(struct_) | (u32)(number_) << 24))   \
            return VERSION_MISMATCH;                                            \
    } while (0)

static int is_mig(const Device *device)
{
    return gpu_listed("mig", device->gpu);
}

/* ---- the physics: a saw of 10 s between 300 and 500 W, and its exact integral --------------- */

static u64 age_ms(void)
{
    long long age = (long long)(monotonic_us() / 1000) - number("loaded_ms", 0);
    return age > 0 ? (u64)age : 0;
}

static u64 power_mw(int gpu, u64 at_ms)
{
    return 300000 + 1000 * (u64)gpu + 20 * (at_ms % 10000);
}

static u64 energy_uj(int gpu, u64 until_ms)
{
    u64 whole = until_ms / 10000, rest = until_ms % 10000;
    u64 saw = whole * (10000ull * 9999 / 2) + (rest ? rest * (rest - 1) / 2 : 0);
    return (300000 + 1000 * (u64)gpu) * until_ms + 20 * saw;
}

static u64 mean_power_mw(int gpu, u64 at_ms)
{
    u64 span_ms = at_ms < 1000 ? (at_ms ? at_ms : 1) : 1000;
    return (energy_uj(gpu, at_ms) - energy_uj(gpu, at_ms - (at_ms ? span_ms : 0))) / span_ms;
}

/* ---- library and identity ------------------------------------------------------------------ */

EXPORT Return nvmlInitWithFlags(u32 flags)
{
    (void)flags;
    read_control();
    hang(__func__);
    if (number("init", 0))
        return (Return)number("init", 0);
    for (int i = 0; i < MAX_GPUS; i++)
        devices[i] = (Device){i, -1, -1};
    initialised++;
    return SUCCESS;
}

EXPORT Return nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

EXPORT Return nvmlShutdown(void)
{
    if (!initialised)
        return UNINITIALIZED;
    initialised--;
    return SUCCESS;
}

EXPORT const char *nvmlErrorString(Return code)
{
    switch (code) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NOT_FOUND: return "Not Found";
    case 9: return "Driver Not Loaded";
    case TIMEOUT: return "Timeout";
    case GPU_IS_LOST: return "GPU is lost";
    case RESET_REQUIRED: return "GPU requires reset";
    case 18: return "Driver/library version mismatch";
    default: return "Unknown Error";
    }
}

EXPORT Return nvmlSystemGetDriverVersion(char *out, u32 size)
{
    read_control();
    snprintf(out, size, "%s", text("driver", "590.48.01"));
    return SUCCESS;
}

EXPORT Return nvmlSystemGetNVMLVersion(char *out, u32 size)
{
    snprintf(out, size, "13.%s", text("driver", "590.48.01"));
    return SUCCESS;
}

EXPORT Return nvmlSystemGetCudaDriverVersion(int *out) { *out = 13010; return SUCCESS; }
EXPORT Return nvmlSystemGetCudaDriverVersion_v2(int *out) { *out = 13010; return SUCCESS; }

static int gpu_count(void)
{
    long long count = number("gpus", 8);
    return count < 0 ? 0 : count > MAX_GPUS ? MAX_GPUS : (int)count;
}

EXPORT Return nvmlDeviceGetCount_v2(u32 *out)
{
    if (!initialised)
        return UNINITIALIZED;
    read_control();
    if (number("fail", 0))
        return (Return)number("fail", 0);
    *out = (u32)gpu_count();
    return SUCCESS;
}

EXPORT Return nvmlDeviceGetHandleByIndex_v2(u32 index, Device **out)
{
    if (index >= (u32)gpu_count())
        return INVALID_ARGUMENT;
    ENTER(&devices[index]);
    *out = &devices[index];
    return SUCCESS;
}

static void uuid_of(const Device *device, char *out, u32 size)
{
    if (device->gi < 0)
        snprintf(out, size, "GPU-%08x-feed-4a11-beef-00000000%04x", 0xfa4e + device->gpu,
                 device->gpu);
    else
        snprintf(out, size, "MIG-%08x-feed-4a11-beef-0000%04x%04x", 0xfa4e + device->gpu,
                 device->gi, device->ci);
}

EXPORT Return nvmlDeviceGetHandleByUUID(const char *uuid, Device **out)
{
    char here[96];
    for (int i = 0; i < gpu_count(); i++) {
        uuid_of(&devices[i], here, sizeof here);
        if (!strcmp(here, uuid)) {
            ENTER(&devices[i]);
            *out = &devices[i];
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

EXPORT Return nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, Device **out)
{
    u32 domain, bus;
    if (sscanf(bus_id, "%x:%x:", &domain, &bus) != 2 || bus < 0x10 ||
        bus - 0x10 >= (u32)gpu_count())
        return NOT_FOUND;
    return nvmlDeviceGetHandleByIndex_v2(bus - 0x10, out);
}

#define STRING(function, format, ...)                             \
    EXPORT Return function(Device *d, char *out, u32 size)        \
    {                                                             \
        ENTER(d);                                                 \
        snprintf(out, size, format, __VA_ARGS__);                 \
        return SUCCESS;                                           \
    }
STRING(nvmlDeviceGetName, "%s", "NVIDIA H100 80GB HBM3")
STRING(nvmlDeviceGetSerial, "16502%08d", d->gpu)
STRING(nvmlDeviceGetVbiosVersion, "%s", "96.00.74.00.09")
STRING(nvmlDeviceGetBoardPartNumber, "%s", "699-21010-0200-000")

EXPORT Return nvmlDeviceGetUUID(Device *d, char *out, u32 size)
{
    ENTER(d);
    uuid_of(d, out, size);
    return SUCCESS;
}

typedef struct {
    char bus_id_legacy[16];
    u32 domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} PciInfo;

EXPORT Return nvmlDeviceGetPciInfo_v3(Device *d, PciInfo *out)
{
    ENTER(d);
    memset(out, 0, sizeof *out);
    out->bus = 0x10 + (u32)d->gpu;
    out->pci_device_id = 0x233010de;
    snprintf(out->bus_id, sizeof out->bus_id, "00000000:%02X:00.0", out->bus);
    snprintf(out->bus_id_legacy, sizeof out->bus_id_legacy, "0000:%02X:00.0", out->bus);
    return SUCCESS;
}

/* ---- single numbers ------------------------------------------------------------------------ */

#define NUMBER(function, type, value)               \
    EXPORT Return function(Device *d, type *out)    \
    {                                               \
        ENTER(d);                                   \
        *out = (type)(value);                       \
        return SUCCESS;                             \
    }
#define TWO_NUMBERS(function, first, second)                \
    EXPORT Return function(Device *d, u32 *one, u32 *two)   \
    {                                                       \
        ENTER(d);                                           \
        *one = (u32)(first);                                \
        *two = (u32)(second);                               \
        return SUCCESS;                                     \
    }
NUMBER(nvmlDeviceGetIndex, u32, d->gpu)
NUMBER(nvmlDeviceGetMinorNumber, u32, d->gpu)
NUMBER(nvmlDeviceGetBrand, u32, 14)
NUMBER(nvmlDeviceGetArchitecture, u32, 9)
NUMBER(nvmlDeviceGetPersistenceMode, u32, 1)
NUMBER(nvmlDeviceGetPowerUsage, u32, mean_power_mw(d->gpu, age_ms()))
NUMBER(nvmlDeviceGetTotalEnergyConsumption, u64, energy_uj(d->gpu, age_ms()) / 1000)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, u32, 700000)
NUMBER(nvmlDeviceGetPowerManagementLimit, u32, 700000)
NUMBER(nvmlDeviceGetPowerManagementDefaultLimit, u32, 700000)
NUMBER(nvmlDeviceGetPerformanceState, u32, 0)
NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, u64, 4)
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, u32, 5)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, u32, 16)
NUMBER(nvmlDeviceGetPcieReplayCounter, u32, 2)
NUMBER(nvmlDeviceGetNumFans, u32, 0)
NUMBER(nvmlDeviceGetRetiredPagesPendingStatus, u32, 0)
NUMBER(nvmlDeviceGetMaxMigDeviceCount, u32, 7)
NUMBER(nvmlDeviceGetSupportedEventTypes, u64, 0x8 | 0x2 | 0x1)
TWO_NUMBERS(nvmlDeviceGetCudaComputeCapability, 9, 0)
TWO_NUMBERS(nvmlDeviceGetPowerManagementLimitConstraints, 200000, 700000)
TWO_NUMBERS(nvmlDeviceGetMigMode, is_mig(d), is_mig(d))

#define NOT_UNDER_MIG(d)              \
    do {                              \
        ENTER(d);                     \
        if (is_mig(d))                \
            return NOT_SUPPORTED;     \
    } while (0)

EXPORT Return nvmlDeviceGetEncoderUtilization(Device *d, u32 *busy, u32 *period_us)
{
    NOT_UNDER_MIG(d);
    *busy = 7, *period_us = 167000;
    return SUCCESS;
}

EXPORT Return nvmlDeviceGetDecoderUtilization(Device *d, u32 *busy, u32 *period_us)
{
    NOT_UNDER_MIG(d);
    *busy = 8, *period_us = 167000;
    return SUCCESS;
}

EXPORT Return nvmlDeviceGetFanSpeed_v2(Device *d, u32 fan, u32 *out)
{
    (void)fan, (void)out;
    ENTER(d);
    return NOT_SUPPORTED;
}

EXPORT Return nvmlDeviceGetFanSpeed(Device *d, u32 *out) { return nvmlDeviceGetFanSpeed_v2(d, 0, out); }

EXPORT Return nvmlDeviceGetClockInfo(Device *d, int domain, u32 *out)
{
    ENTER(d);
    *out = domain == 2 ? 2619 : 1755;
    return SUCCESS;
}

EXPORT Return nvmlDeviceGetMaxClockInfo(Device *d, int domain, u32 *out)
{
    ENTER(d);
    *out = domain == 2 ? 2619 : 1980;
    return SUCCESS;
}

EXPORT Return nvmlDeviceGetTemperature(Device *d, int sensor, u32 *out)
{
    (void)sensor;
    ENTER(d);
    *out = 50 + (u32)d->gpu;
    return SUCCESS;
}

EXPORT Return nvmlDeviceGetTemperatureThreshold(Device *d, int threshold, u32 *out)
{
    ENTER(d);
    *out = threshold ? 87 : 92;
    return SUCCESS;
}

EXPORT Return nvmlDeviceGetPcieThroughput(Device *d, int counter, u32 *out)
{
    ENTER(d);
    usleep(20000); /* as the real one: it measures for 20 ms */
    *out = counter ? 2000 : 1000;
    return SUCCESS;
}

EXPORT Return nvmlDeviceGetTotalEccErrors(Device *d, int type, int counter, u64 *out)
{
    ENTER(d);
    *out = (u64)(10 * counter + type);
    return SUCCESS;
}

EXPORT Return nvmlDeviceGetRemappedRows(Device *d, u32 *corrected, u32 *uncorrected, u32 *pending,
                                        u32 *failed)
{
    ENTER(d);
    *corrected = 3, *uncorrected = 1, *pending = 0, *failed = 0;
    return SUCCESS;
}

typedef struct { u32 gpu, memory; } Utilization;

EXPORT Return nvmlDeviceGetUtilizationRates(Device *d, Utilization *out)
{
    NOT_UNDER_MIG(d);
    *out = (Utilization){90 + (u32)d->gpu, 40};
    return SUCCESS;
}

typedef struct { u64 total, free, used; } Memory;

static Memory memory_of(const Device *d)
{
    u64 total = (d->gi < 0 ? 81559ull : 9728ull) << 20;
    u64 used = (d->gi < 0 ? 40000ull : 1000ull + (u64)d->gi) << 20;
    return (Memory){total, total - used, used};
}

EXPORT Return nvmlDeviceGetMemoryInfo(Device *d, Memory *out)
{
    ENTER(d);
    *out = memory_of(d);
    return SUCCESS;
}

typedef struct { u64 total, free, used; } Bar1;

EXPORT Return nvmlDeviceGetBAR1MemoryInfo(Device *d, Bar1 *out)
{
    ENTER(d);
    *out = (Bar1){131072ull << 20, 131070ull << 20, 2ull << 20};
    return SUCCESS;
}

typedef struct { u32 pid; u64 used; u32 gi, ci; } Process;

EXPORT Return nvmlDeviceGetComputeRunningProcesses_v3(Device *d, u32 *count, Process *out)
{
    ENTER(d);
    u32 room = *count;
    *count = 1;
    if (room < 1 || !out)
        return INSUFFICIENT_SIZE;
    *out = (Process){4242, 1ull << 30, ~0u, ~0u};
    return SUCCESS;
}

/* ---- fields --------------------------------------------------------------------------------- */

typedef struct {
    u32 field, scope;
    long long timestamp_us, latency_us;
    u32 type;
    Return code;
    union { double d; u32 ui; unsigned long ul; u64 ull; long long sll; int si; } value;
} FieldValue;

enum { TYPE_UINT = 1, TYPE_ULL = 3, TYPE_INT = 5 };

static void give(FieldValue *out, u32 type, u64 value)
{
    out->type = type;
    if (type == TYPE_UINT)
        out->value.ui = (u32)value;
    else if (type == TYPE_INT)
        out->value.si = (int)value;
    else
        out->value.ull = value;
}

static int power_field(const Device *d, FieldValue *out, u64 age)
{
    if (out->scope > 0)
        return 0; /* no module around this GPU */
    switch (out->field) {
    case 185: give(out, TYPE_UINT, mean_power_mw(d->gpu, age)); return 1;
    case 186: give(out, TYPE_UINT, power_mw(d->gpu, age)); return 1;
    case 187: give(out, TYPE_UINT, 200000); return 1;
    case 188: case 189: case 190: give(out, TYPE_UINT, 700000); return 1;
    case 192: give(out, TYPE_UINT, 650000); return 1;
    default: return 0;
    }
}

static int counter_field(const Device *d, FieldValue *out, u64 age)
{
    switch (out->field) {
    case 83: case 191: give(out, TYPE_ULL, energy_uj(d->gpu, age) / 1000); return 1;
    case 74: give(out, TYPE_ULL, age * 250000); return 1; /* a quarter of the time, in ns */
    case 76: case 270: case 271: give(out, TYPE_ULL, 0); return 1;
    case 269: give(out, TYPE_ULL, age * 1000); return 1;
    case 197: give(out, TYPE_ULL, age * 1000 * 3); return 1;
    case 198: give(out, TYPE_ULL, age * 1000 * 5); return 1;
    case 138: case 139: give(out, TYPE_ULL, age * (out->field - 131)); return 1;
    default: return 0;
    }
}

static int health_field(FieldValue *out)
{
    switch (out->field) {
    case 82: give(out, TYPE_UINT, 61); return 1;
    case 3: case 4: case 5: case 6: give(out, TYPE_ULL, out->field - 3); return 1;
    case 142: give(out, TYPE_UINT, 3); return 1;
    case 143: give(out, TYPE_UINT, 1); return 1;
    case 144: case 145: give(out, TYPE_UINT, 0); return 1;
    case 94: give(out, TYPE_UINT, 2); return 1;
    case 38: give(out, TYPE_ULL, 4); return 1;
    case 45: give(out, TYPE_ULL, 5); return 1;
    case 52: case 59: give(out, TYPE_ULL, 0); return 1;
    case 230: give(out, TYPE_UINT, 0); return 1;
    default: return 0; /* among them 29 to 31: no page retirement on Hopper */
    }
}

static int field_unsupported(const FieldValue *field)
{
    char plain[16], scoped[32];
    snprintf(plain, sizeof plain, "%u", field->field);
    snprintf(scoped, sizeof scoped, "%u.%u", field->field, field->scope);
    return listed("unsupported", plain) || listed("unsupported", scoped);
}

EXPORT Return nvmlDeviceGetFieldValues(Device *d, int count, FieldValue *values)
{
    ENTER(d);
    u64 age = age_ms();
    for (FieldValue *at = values; at < values + count; at++) {
        at->timestamp_us = (long long)monotonic_us();
        at->latency_us = 3;
        at->code = SUCCESS;
        at->value.ull = 0xdeaddeaddeaddeadull; /* nobody may read what was not reported */
#ifdef OLD_DRIVER
        if (at->field > 184) {
            at->code = INVALID_ARGUMENT;
            continue;
        }
#endif
        if (field_unsupported(at) ||
            !(power_field(d, at, age) || counter_field(d, at, age) || health_field(at)))
            at->code = NOT_SUPPORTED;
    }
    return SUCCESS;
}

/* ---- MIG ------------------------------------------------------------------------------------ */

EXPORT Return nvmlDeviceGetMigDeviceHandleByIndex(Device *d, u32 index, Device **out)
{
    ENTER(d);
    int gpu, gi, ci, used = 0;
    u32 seen = 0;
    if (!is_mig(d))
        return NOT_SUPPORTED;
    for (const char *at = text("instances", ""); sscanf(at, "%d:%d:%d%n", &gpu, &gi, &ci, &used) == 3;
         at += at[used] == ',' ? used + 1 : used) {
        if (gpu != d->gpu || seen++ != index)
            continue;
        Device *slot = &instances[(gpu * 8 + gi + ci) % MAX_INSTANCES];
        *slot = (Device){gpu, gi, ci};
        *out = slot;
        return SUCCESS;
    }
    return NOT_FOUND;
}

NUMBER(nvmlDeviceIsMigDeviceHandle, u32, d->gi >= 0)

EXPORT Return nvmlDeviceGetGpuInstanceId(Device *d, u32 *out)
{
    ENTER(d);
    *out = (u32)d->gi;
    return d->gi < 0 ? NOT_FOUND : SUCCESS;
}

EXPORT Return nvmlDeviceGetComputeInstanceId(Device *d, u32 *out)
{
    ENTER(d);
    *out = (u32)d->ci;
    return d->ci < 0 ? NOT_FOUND : SUCCESS;
}

EXPORT Return nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Device *d, Device **out)
{
    ENTER(d);
    *out = &devices[d->gpu];
    return SUCCESS;
}

/* ---- events --------------------------------------------------------------------------------- */

typedef struct {
    Device *device;
    u64 type, data;
    u32 gi, ci;
} EventData;

typedef struct {
    u32 gpus;
    int serial;
    int changes; /* of the control file, to be waited for as a driver's file is: without polling */
} EventSet;

static int watch_control(void)
{
    const char *path = getenv("FAKE_NVML_CONTROL");
    char folder[4096];
    snprintf(folder, sizeof folder, "%s", path ? path : "");
    char *slash = strrchr(folder, '/');
    if (!slash)
        return -1;
    *slash = 0;
    int changes = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (changes >= 0)
        inotify_add_watch(changes, *folder ? folder : "/", IN_MOVED_TO | IN_CLOSE_WRITE);
    return changes;
}

static int xid_now(int *code, int *gpu)
{
    int serial = 0;
    *code = *gpu = 0;
    sscanf(text("xid", ""), "%d/%d/%d", &serial, code, gpu);
    return serial;
}

EXPORT Return nvmlEventSetCreate(EventSet **out)
{
    int code, gpu;
    read_control();
    *out = calloc(1, sizeof **out);
    (*out)->changes = watch_control();
    (*out)->serial = xid_now(&code, &gpu);
    return SUCCESS;
}

EXPORT Return nvmlEventSetFree(EventSet *set)
{
    if (set->changes >= 0)
        close(set->changes);
    free(set);
    return SUCCESS;
}

EXPORT Return nvmlDeviceRegisterEvents(Device *d, u64 mask, EventSet *set)
{
    ENTER(d);
    if (mask & ~0xbull)
        return NOT_SUPPORTED;
    set->gpus |= 1u << d->gpu;
    return SUCCESS;
}

EXPORT Return nvmlEventSetWait_v2(EventSet *set, EventData *out, u32 timeout_ms)
{
    u64 until_us = monotonic_us() + 1000ull * timeout_ms;
    for (;;) {
        int code, gpu;
        read_control();
        int serial = xid_now(&code, &gpu);
        if (serial != set->serial) {
            set->serial = serial;
            if (gpu >= 0 && gpu < MAX_GPUS && set->gpus & 1u << gpu) {
                *out = (EventData){&devices[gpu], 8, (u64)code, ~0u, ~0u};
                return SUCCESS;
            }
        }
        u64 now_us = monotonic_us();
        if (now_us >= until_us)
            return TIMEOUT;
        struct pollfd change = {set->changes, POLLIN, 0};
        if (poll(&change, 1, (int)((until_us - now_us + 999) / 1000)) > 0) {
            char told[4096];
            while (read(set->changes, told, sizeof told) > 0)
                ;
            usleep(2000); /* the control file is looked at once a millisecond, at most */
        }
    }
}

/* ---- what came later ------------------------------------------------------------------------ */

#ifndef OLD_DRIVER

typedef struct { u32 version; int sensor, temperature; } Temperature;

EXPORT Return nvmlDeviceGetTemperatureV(Device *d, Temperature *out)
{
    ENTER(d);
    VERSIONED(out, 1);
    out->temperature = 50 + d->gpu;
    return SUCCESS;
}

typedef struct { u32 version; int margin; } Margin;

EXPORT Return nvmlDeviceGetMarginTemperature(Device *d, Margin *out)
{
    ENTER(d);
    VERSIONED(out, 1);
    out->margin = 37 - d->gpu;
    return SUCCESS;
}

typedef struct { u32 version; u64 total, reserved, free, used; } MemoryV2;

EXPORT Return nvmlDeviceGetMemoryInfo_v2(Device *d, MemoryV2 *out)
{
    ENTER(d);
    VERSIONED(out, 2);
    Memory plain = memory_of(d);
    u64 reserved = 600ull << 20;
    *out = (MemoryV2){out->version, plain.total, reserved, plain.free - reserved, plain.used};
    return SUCCESS;
}

NUMBER(nvmlDeviceGetCurrentClocksEventReasons, u64, 4)

typedef struct { u32 version, supported; } GpmSupport;

EXPORT Return nvmlGpmQueryDeviceSupport(Device *d, GpmSupport *out)
{
    ENTER(d);
    if (out->version != 1)
        return VERSION_MISMATCH;
    out->supported = 1;
    return SUCCESS;
}

typedef struct { u64 at_us; int gpu, gi; } GpmSample;

EXPORT Return nvmlGpmSampleAlloc(GpmSample **out)
{
    *out = calloc(1, sizeof **out);
    return SUCCESS;
}

EXPORT Return nvmlGpmSampleFree(GpmSample *sample)
{
    free(sample);
    return SUCCESS;
}

EXPORT Return nvmlGpmSampleGet(Device *d, GpmSample *sample)
{
    ENTER(d);
    *sample = (GpmSample){monotonic_us(), d->gpu, 0};
    return SUCCESS;
}

EXPORT Return nvmlGpmMigSampleGet(Device *d, u32 gi, GpmSample *sample)
{
    ENTER(d);
    *sample = (GpmSample){monotonic_us(), d->gpu, (int)gi};
    return SUCCESS;
}

typedef struct {
    u32 metric;
    Return code;
    double value;
    const char *name[3];
} GpmMetric;

typedef struct {
    u32 version, count;
    GpmSample *first, *second;
    GpmMetric metrics[];
} GpmMetrics;

EXPORT Return nvmlGpmMetricsGet(GpmMetrics *request)
{
    if (request->version != 1)
        return VERSION_MISMATCH;
    const GpmSample *first = request->first, *second = request->second;
    if (!first || !second || second->at_us <= first->at_us || first->gpu != second->gpu)
        return INVALID_ARGUMENT;
    for (u32 i = 0; i < request->count; i++) {
        GpmMetric *metric = &request->metrics[i];
        metric->code = SUCCESS;
        metric->value = 10.0 * metric->metric + second->gi + second->gpu / 10.0;
    }
    return SUCCESS;
}

#endif
