/* Two static libraries of Rust, each with the crate inside. */
#include <stddef.h>
size_t one(void);
size_t two(void);
int main(void)
{
    return one() != two();
}
