// Package remote keeps snapshots in an object store, so that a node may start
// from what another has made: a small manifest for each, and the content of its
// files in chunks, of which equal ones are stored once. Package node pushes
// snapshots when they are made, and looks here for one before it boots.
//
// # Objects
//
//	skep1/packs/<pack>                           chunks, one after the other; 128 random bits name a pack
//	skep1/snapshots/<function>/<id>/<fit>-<sum>  a manifest; sum is the SHA-256 of the object
//	skep1/pushing/<push>                         JSON: the packs that a push under way relies on
//	skep1/condemned/<pack>                       empty: the pack is to be deleted, and nobody may rely on it anew
//	skep1/clock/<random>                         empty: what time it is in the store, for who just wrote it
//
// A manifest is written last and in one piece, so a push that broke off has left
// nothing that anybody finds. Packs are never changed, and their names never used
// again. Numbers are little-endian.
//
// # Pack, version 1
//
//	offset  size  what
//	0       8     magic "skeppack"
//	8       4     version, 1
//	12      4     zero
//	16            chunks: a Zstandard frame each (RFC 8878)
//
// # Pack, version 2: encrypted
//
// The same with version 2, but what is stored of a chunk is its frame sealed under the digest
// in its manifest (AES-SIV, RFC 5297, 16 bytes longer); see package seal.
//
// # Manifest, version 2: encrypted
//
//	offset  size  what
//	0       8     magic "skepsnap"
//	8       4     version, 2
//	12      4     P, number of packs
//	16      16    ID of the key
//	32      16·P  names of the packs, the same as within
//	…       rest  a manifest of version 1, sealed (16 bytes longer); the associated data is all that is
//	              before, and then <function>/<id>/<fit> as in the object's key, so that it is of use nowhere else
//
// Within, the digest of a chunk is the HMAC-SHA-256 of its content with the key for names. In the
// key of an object <fit> is keyed, too. What packs a snapshot needs is to be seen, so that
// garbage is collected without the key, whatever others have encrypted with theirs.
//
// # Manifest, version 1
//
//	offset  size  what
//	0       8     magic "skepsnap"
//	8       4     version, 1
//	12      4     block size B in bytes, a power of two of at least 4096
//	16      4     M, length of the snapshot's own manifest, at most 1 MiB
//	20      4     P, number of packs
//	24      4     C, number of chunks
//	28      4     F, number of files, at most 64
//	32      4     R, number of runs
//	36      4     zero
//	40      M     the snapshot's own manifest, as its maker wrote it, then zeros up to a multiple of 8
//	…       16·P  names of the packs
//	…       48·C  chunks: SHA-256 of the content (32), pack (4), offset in the pack (4), length there (4), of the content (4)
//	…             files, F times: size (8), number of runs (4), length N of the name (4), name (N), then zeros up to a multiple of 8
//	…       12·R  runs, of the first file, then of the next: first block (4), number of blocks (4), first chunk (4)
//	…       32    SHA-256 of everything before
//
// A file is cut into blocks of B bytes, of which the last may be short. A run says
// that so many blocks from one on have the content of as many chunks from one on.
// Runs of a file ascend and do not overlap. A block that no run has is zeros, and
// takes no byte anywhere. Chunks stand in the order in which a start uses them.
package remote
