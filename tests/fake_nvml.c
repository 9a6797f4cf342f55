/* Answers as libnvidia-ml for tests: the GPUs are those of `devices.txt` beside the library, one a line:
 *
 *     UUID  BUS  DEVICE-FILE|-  CPU-AFFINITY(hex words, lowest first)|-  MIG-UUID,...|-|none
 *
 * %h in a UUID is the host's name. A GPU whose device file may not be opened (the devices cgroup of a job) is not there, as with the real library.
 * "none": the GPU has no MIG; "-": MIG is off; an instance "hidden" may not be asked for. A GPU on the bus "lost" has fallen off it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };
#define MOST 32

typedef struct { char uuid[96], bus[32], file[256], affinity[256], mig[1024]; } Gpu;
typedef struct { char uuid[96]; } Instance;
typedef struct {
    char busIdLegacy[16];
    unsigned domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
} PciInfo;

static Gpu gpus[MOST];
static Instance instances[MOST * 8];
static int count, n_instances;

static int hidden(const char *file) {
    if (!strcmp(file, "-")) return 0;
    int fd = open(file, O_RDWR);
    if (fd >= 0) close(fd);
    return fd < 0 && (errno == EPERM || errno == EACCES || errno == ENOENT);
}

static void name_host(char *uuid) {
    char host[64], out[96], *at = strstr(uuid, "%h");
    if (!at) return;
    gethostname(host, sizeof host);
    *at = 0;
    snprintf(out, sizeof out, "%.30s%.20s%.40s", uuid, host, at + 2);
    strcpy(uuid, out);
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    Dl_info self;
    char path[512];
    dladdr((void *)nvmlInitWithFlags, &self);
    snprintf(path, sizeof path, "%.490s", self.dli_fname);
    strcpy(strrchr(path, '/') + 1, "devices.txt");
    FILE *list = fopen(path, "r");
    if (!list) return 9; /* driver not loaded */
    count = n_instances = 0;
    Gpu one;
    while (count < MOST && fscanf(list, "%95s %31s %255s %255s %1023s", one.uuid, one.bus, one.file, one.affinity, one.mig) == 5)
        if (!hidden(one.file)) { name_host(one.uuid); gpus[count++] = one; }
    fclose(list);
    return SUCCESS;
}

int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "an error of the fake NVML"; }
int nvmlDeviceGetCount_v2(unsigned *out) { *out = count; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    if ((int)index >= count) return INVALID_ARGUMENT;
    if (!strcmp(gpus[index].bus, "lost")) return GPU_IS_LOST;
    *handle = &gpus[index];
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *handle, char *out, unsigned size) { /* both structures begin with it */
    if (strlen((char *)handle) >= size) return INSUFFICIENT_SIZE;
    strcpy(out, (char *)handle);
    return SUCCESS;
}

int nvmlDeviceGetPciInfo_v3(Gpu *gpu, PciInfo *out) {
    memset(out, 0, sizeof *out);
    snprintf(out->busId, sizeof out->busId, "%s", gpu->bus);
    return SUCCESS;
}

int nvmlDeviceGetMigMode(Gpu *gpu, unsigned *current, unsigned *pending) {
    if (!strcmp(gpu->mig, "none")) return NOT_SUPPORTED;
    *current = *pending = strcmp(gpu->mig, "-") != 0;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(Gpu *gpu, unsigned *out) { (void)gpu; *out = 7; return SUCCESS; }

int nvmlDeviceGetMigDeviceHandleByIndex(Gpu *gpu, unsigned index, void **handle) {
    char copy[1024], *rest = copy, *part;
    strcpy(copy, gpu->mig);
    for (unsigned at = 0; (part = strsep(&rest, ",")); at++)
        if (at == index) {
            if (!strcmp(part, "hidden")) return NO_PERMISSION;
            Instance *made = &instances[n_instances++ % (MOST * 8)];
            snprintf(made->uuid, sizeof made->uuid, "%s", part);
            *handle = made;
            return SUCCESS;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetCpuAffinity(Gpu *gpu, unsigned words, unsigned long *out) {
    char copy[256], *rest = copy, *part;
    if (!strcmp(gpu->affinity, "-")) return NOT_SUPPORTED;
    strcpy(copy, gpu->affinity);
    memset(out, 0, words * sizeof *out);
    for (unsigned at = 0; at < words && (part = strsep(&rest, ",")); at++) out[at] = strtoul(part, NULL, 16);
    return SUCCESS;
}
