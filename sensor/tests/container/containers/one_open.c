/* Opens the file that its first argument names, and no other: statically linked, the C library opens none either.
   With a second argument it then says so and stays until its standard input closes. */
#include <fcntl.h>
#include <unistd.h>

int main(int argc, char **argv) {
  char byte;
  if (argc < 2 || open(argv[1], O_RDONLY) < 0) return 1;
  if (argc == 2) return 0;
  if (write(STDOUT_FILENO, "opened\n", 7) != 7) return 2;
  while (read(STDIN_FILENO, &byte, 1) > 0) continue;
  return 0;
}
