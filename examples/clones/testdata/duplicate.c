/*
 * Prints what OpenSSL's generator says in two duplicates of this process, whose
 * number is 1 as theirs is: like the clones of a snapshot, OpenSSL does not see
 * that they are others. Each argument is the entropy that one of them is given.
 */
#define _GNU_SOURCE
#include <openssl/rand.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int renew(const unsigned char *entropy, int bytes);

static int duplicate(const char *entropy)
{
	unsigned char out[16];

	if (entropy != NULL && !renew((const unsigned char *)entropy, (int)strlen(entropy)))
		return 1;
	if (RAND_bytes(out, sizeof out) != 1)
		return 1;
	for (size_t i = 0; i < sizeof out; i++)
		printf("%02x", out[i]);
	printf("\n");
	return fflush(stdout) != 0;
}

int main(int argc, char **argv)
{
	unsigned char first;

	if (getpid() != 1 || RAND_bytes(&first, 1) != 1)
		return 2;
	for (int i = 1; i <= 2; i++) {
		int status;

		long pid = syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0);

		if (pid == 0)
			_exit(duplicate(argc > i ? argv[i] : NULL));
		if (pid < 0 || wait(&status) < 0 || status != 0)
			return 3;
	}
	return 0;
}
