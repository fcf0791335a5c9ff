package filelock

import "os"

// File is the open file of a lock, by which the kernel knows whose it is.
func (l *Lock) File() *os.File { return l.f }
