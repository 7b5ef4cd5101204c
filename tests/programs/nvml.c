/* A stand-in for NVIDIA's management library: two devices, one of them divided. For machines without one. */
#include <string.h>

static const char *const uuids[] = {
    "GPU-11111111-2222-3333-4444-555555555555",
    "GPU-99999999-2222-3333-4444-555555555555",
};
static int devices[2];

static int number(void *device) { return (int)((int *)device - devices); }

int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }

int nvmlSystemGetDriverVersion(char *text, unsigned length) {
    strncpy(text, "580.82.07", length);
    return 0;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = 2;
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = &devices[index];
    return 0;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    for (int i = 0; i < 2; i++) {
        if (strcmp(uuid, uuids[i]) == 0) {
            *device = &devices[i];
            return 0;
        }
    }
    return 6; /* not found */
}

int nvmlDeviceGetUUID(void *device, char *text, unsigned length) {
    strncpy(text, uuids[number(device)], length);
    return 0;
}

int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    *current = *pending = number(device) == 1;
    return 0;
}

int nvmlDeviceGetMinorNumber(void *device, unsigned *minor) {
    *minor = 200 + number(device); /* no machine has so many */
    return 0;
}

struct utilization { unsigned gpu, memory; };

int nvmlDeviceGetUtilizationRates(void *device, struct utilization *rates) {
    rates->gpu = 37;
    rates->memory = 5;
    return 0;
}

struct memory { unsigned version; unsigned long long total, reserved, free, used; };

int nvmlDeviceGetMemoryInfo_v2(void *device, struct memory *memory) {
    memory->total = 80ULL << 30;
    memory->reserved = 0;
    memory->free = 79ULL << 30;
    memory->used = 1ULL << 30;
    return 0;
}
