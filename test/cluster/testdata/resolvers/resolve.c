// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Asks the C library's resolver. Each line of the input is a KIND and a NAME; each line of the output is what was found, sorted and with spaces
// between, or "none" if there is no such thing, or "failed". The library is the one it is linked with: glibc or musl.
#include <arpa/inet.h>
#include <arpa/nameser.h>
#include <netdb.h>
#include <netinet/in.h>
#include <resolv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#ifndef EAI_NODATA
#define EAI_NODATA -5
#endif
#ifndef EAI_ADDRFAMILY
#define EAI_ADDRFAMILY -9
#endif

static char *found[1024];
static int count;

static void find(const char *value) {
	if (count < 1024)
		found[count++] = strdup(value);
}

static int compare(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void print(void) {
	if (count == 0)
		printf("none");
	qsort(found, count, sizeof *found, compare);
	for (int i = 0; i < count; i++) {
		if (i == 0 || strcmp(found[i], found[i - 1]) != 0)
			printf("%s%s", i ? " " : "", found[i]);
	}
	printf("\n");
	for (int i = 0; i < count; i++)
		free(found[i]);
	count = 0;
}

// gai says whether an error of getaddrinfo means that there is nothing.
static int gai(int err) { return err == 0 || err == EAI_NONAME || err == EAI_NODATA || err == EAI_ADDRFAMILY; }

static int host(const char *name) {
	struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *list = NULL;
	int err = getaddrinfo(name, NULL, &hints, &list);
	for (struct addrinfo *a = err ? NULL : list; a; a = a->ai_next) {
		char text[INET6_ADDRSTRLEN];
		const void *addr = a->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)a->ai_addr)->sin_addr
		                                           : (void *)&((struct sockaddr_in6 *)a->ai_addr)->sin6_addr;
		find(inet_ntop(a->ai_family, addr, text, sizeof text));
	}
	if (!err)
		freeaddrinfo(list);
	return gai(err);
}

static int ptr(const char *text) {
	struct sockaddr_in v4 = {.sin_family = AF_INET};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
	int four = inet_pton(AF_INET, text, &v4.sin_addr) == 1;
	char name[NI_MAXHOST];
	if (!four && inet_pton(AF_INET6, text, &v6.sin6_addr) != 1)
		return 0;
	int err = getnameinfo(four ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6, four ? sizeof v4 : sizeof v6, name, sizeof name, NULL, 0, NI_NAMEREQD);
	if (!err)
		find(name);
	return gai(err);
}

static int query(const char *name, int type) {
	static unsigned char answer[65536];
	ns_msg msg;
	int len = res_query(name, ns_c_in, type, answer, sizeof answer);
	if (len < 0)
		return h_errno == HOST_NOT_FOUND || h_errno == NO_DATA;
	if (ns_initparse(answer, len, &msg) < 0 || ns_msg_getflag(msg, ns_f_rcode) != ns_r_noerror)
		return 0;
	for (int i = 0; i < ns_msg_count(msg, ns_s_an); i++) {
		ns_rr rr;
		if (ns_parserr(&msg, ns_s_an, i, &rr) < 0)
			return 0;
		if (ns_rr_type(rr) != type)
			continue;
		const unsigned char *data = ns_rr_rdata(rr);
		char text[2 * NS_MAXDNAME], name[NS_MAXDNAME];
		switch (type) {
		case ns_t_a:
			inet_ntop(AF_INET, data, text, sizeof text);
			break;
		case ns_t_aaaa:
			inet_ntop(AF_INET6, data, text, sizeof text);
			break;
		case ns_t_srv:
			if (dn_expand(answer, answer + len, data + 6, name, sizeof name) < 0)
				return 0;
			snprintf(text, sizeof text, "%d,%d,%d,%s", ns_get16(data), ns_get16(data + 2), ns_get16(data + 4), name);
			break;
		case ns_t_cname:
			if (dn_expand(answer, answer + len, data, text, sizeof text) < 0)
				return 0;
			break;
		case ns_t_txt:
			snprintf(text, sizeof text, "%.*s", data[0], data + 1);
			break;
		default:
			return 0;
		}
		find(text);
	}
	return 1;
}

int main(void) {
	char kind[16], name[1100];
	while (scanf("%15s %1099s", kind, name) == 2) {
		int ok = !strcmp(kind, "host") ? host(name) : !strcmp(kind, "ptr") ? ptr(name) : !strcmp(kind, "a") ? query(name, ns_t_a)
			: !strcmp(kind, "aaaa") ? query(name, ns_t_aaaa) : !strcmp(kind, "srv") ? query(name, ns_t_srv)
			: !strcmp(kind, "txt") ? query(name, ns_t_txt) : !strcmp(kind, "cname") ? query(name, ns_t_cname) : 0;
		if (ok) {
			print();
		} else {
			printf("failed\n");
			count = 0;
		}
	}
	return 0;
}
