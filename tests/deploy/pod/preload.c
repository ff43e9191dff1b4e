/* A library that an image would have loaded into every program. */
#include <unistd.h>

__attribute__((constructor)) static void loaded(void) {
    static const char said[] = "PRELOADED\n";
    (void)!write(2, said, sizeof said - 1);
}
