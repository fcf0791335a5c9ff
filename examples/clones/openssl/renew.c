/*
 * For programs that use OpenSSL (or a library that does): call renew from the
 * clone hook, with the entropy that it is sent. OpenSSL's generators live in the
 * process. They seed themselves again after a fork, which they know by the
 * process's number; a clone's is the same as before, so they do not.
 */
#include <openssl/rand.h>

/* renew returns 1, or 0 where OpenSSL could not take it in. */
int renew(const unsigned char *entropy, int bytes)
{
	RAND_add(entropy, bytes, bytes);
	return RAND_status();
}
