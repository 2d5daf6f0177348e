// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// A UDP server that sends back what it gets, marked as a DNS answer: a yardstick. One system call in, one out.
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
	struct sockaddr_in on = {.sin_family = AF_INET}, from;
	unsigned char msg[4096];
	int fd;

	if (argc != 3 || inet_pton(AF_INET, argv[1], &on.sin_addr) != 1) {
		fprintf(stderr, "usage: %s ADDRESS PORT\n", argv[0]);
		return 2;
	}
	on.sin_port = htons(atoi(argv[2]));
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&on, sizeof(on)) < 0) {
		perror("listen");
		return 1;
	}
	for (;;) {
		socklen_t size = sizeof(from);
		ssize_t n = recvfrom(fd, msg, sizeof(msg), 0, (struct sockaddr *)&from, &size);

		if (n < 0) {
			perror("receive");
			return 1;
		}
		if (n < 12)
			continue;
		msg[2] |= 0x80;
		if (sendto(fd, msg, n, 0, (struct sockaddr *)&from, size) < 0) {
			perror("send");
			return 1;
		}
	}
}
