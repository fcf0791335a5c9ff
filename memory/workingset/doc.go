// Package workingset is what skep remembers of how a restored guest uses its
// memory: the trace, which pages were touched first and in which order, and the
// working set, those pages' contents laid out for reading. Package memory
// records them on a first restore, prefetches from them on later ones, and
// learns from each how good they still are; before the first there may be those
// of a trial. All are files that belong to a
// snapshot: they lie in its directory, name it, and die with it.
//
// All numbers are little-endian; CRC-32 is the one of IEEE 802.3 (zlib). A page is 4096 bytes and is numbered by its
// place in the snapshot's memory file. Files are published by rename, and read
// with every length checked before it is used; a file that is wrong in any way
// gives an error that wraps ErrFormat, and no byte of it is to reach a guest.
//
// # Trace, version 1
//
//	offset  size  what
//	0       8     magic "skeptrac"
//	8       4     version, 1
//	12      4     page size, 4096
//	16      8     size of the guest's memory in bytes
//	24      4     N, number of touches, at most one for each page
//	28      4     L, length of the snapshot's id, 1 to 255
//	32      L     the snapshot's id, then zeros up to a multiple of 8
//	…       16·N  touches in order: page (4), flags (4; bit 0: a write), nanoseconds since the vCPUs ran (8)
//	…       4     CRC-32 of everything before
//
// # Learned, version 1
//
//	offset  size  what
//	0       8     magic "skeplern"
//	8       4     version, 1
//	12      4     page size, 4096
//	16      8     size of the guest's memory in bytes
//	24      4     N, number of pages that there is something to say of
//	28      4     L, length of the snapshot's id, 1 to 255
//	32      4     restores observed since the working set was recorded
//	36      4     of the last of them, how many in a row it did not pay for
//	40      4     times that it was recorded anew for that
//	44      4     starts still to be made without it
//	48      L     the snapshot's id, then zeros up to a multiple of 8
//	…       12·N  pages, ascending: page (4), microseconds from when the vCPUs ran until its last first touch (4),
//	              in which of the last eight restores it was missed (1; bit 0: the last), times in a row
//	              that it was held back in vain (1), zeros (2)
//	…       4     CRC-32 of everything before
//
// # Working set, version 1
//
//	offset  size  what
//	0       8     magic "skepwset"
//	8       4     version, 1
//	12      4     page size, 4096
//	16      8     size of the guest's memory in bytes
//	24      4     R, number of runs
//	28      4     B, number of blocks of contents
//	32      4     block size in bytes, 262144
//	36      4     L, length of the snapshot's id, 1 to 255
//	40      8     offset of the contents, a multiple of 4096
//	48      8     length of the contents in bytes, a multiple of 4096
//	56      4     CRC-32 of everything up to the contents, with this field as zero
//	60      4     zero
//	64      L     the snapshot's id, then zeros up to a multiple of 8
//	…      12·R   runs: first page (4), pages (4; bit 31: zeros, without contents),
//	              microseconds from when the vCPUs ran until its first use (4; the largest number: or later)
//	…       4·B   CRC-32 of each block; the last may be short
//	…             zeros up to the offset of the contents
//	…             contents of the runs that have any, one after the other
//
// Runs are maximal and stand in the order in which the first of their pages was
// used, so that one sequential read brings first what is needed first, and one
// call installs as much as the kernel allows. Runs do not overlap.
package workingset
