package main

import "context"

func changes(context.Context, *suite) error       { return nil }
func rollingChange(context.Context, *suite) error { return nil }
func memories(context.Context, *suite) error      { return nil }
func connections(context.Context, *suite) error   { return nil }
func sliceWrites(context.Context, *suite) error   { return nil }
func replacement(context.Context, *suite) error   { return nil }
func writeDocs(string, []figure, bool) error      { return nil }
