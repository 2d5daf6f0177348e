// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// lookup FAMILY NAME prints the addresses of a name, one a line, as the C library that it is linked with finds them. FAMILY is 0, 4 or 6.

#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
	static const int families[] = {[0] = AF_UNSPEC, [4] = AF_INET, [6] = AF_INET6};
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *all, *a;
	char text[INET6_ADDRSTRLEN];

	if (argc != 3)
		return 2;
	hints.ai_family = families[atoi(argv[1])];
	if (getaddrinfo(argv[2], NULL, &hints, &all))
		return 1;
	for (a = all; a; a = a->ai_next) {
		const void *p = a->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)a->ai_addr)->sin_addr
							: (void *)&((struct sockaddr_in6 *)a->ai_addr)->sin6_addr;
		puts(inet_ntop(a->ai_family, p, text, sizeof text));
	}
	return 0;
}
