/* Runs the inputs in the files that are named, one after the other: what libFuzzer's own main function does with files,
 * for compilers that have none.
 */
#include "fuzz.h"

#define INPUT_MAX 65536

int main(int count, char **names)
{
    static uint8_t bytes[INPUT_MAX];

    for (int i = 1; i < count; i++) {
        FILE *file = fopen(names[i], "rb");
        size_t length;
        MUST(file != NULL);
        length = fread(bytes, 1, sizeof(bytes), file);
        fclose(file);
        printf("%s\n", names[i]);
        fflush(stdout);
        LLVMFuzzerTestOneInput(bytes, length);
    }
    return count > 1 ? 0 : 1;
}
