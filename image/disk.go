package image

import (
	"encoding/binary"
	"fmt"
	"os"
)

// padInodeBitmaps sets the bits after the last inode of each group's bitmap,
// which the disk's writer leaves clear: no kernel looks at them, but e2fsck
// calls the disk damaged.
func padInodeBitmaps(disk *os.File) error {
	const (
		superblock, block, descriptor = 1024, 4096, 32
		oBlocks, oPerGroup, oInodes   = 0x04, 0x20, 0x28 // within the superblock
		oBitmap                       = 4                // within a descriptor
	)
	le := binary.LittleEndian
	sb := make([]byte, 256)
	if _, err := disk.ReadAt(sb, superblock); err != nil {
		return fmt.Errorf("reading the superblock: %w", err)
	}
	blocks, perGroup, inodes := le.Uint32(sb[oBlocks:]), le.Uint32(sb[oPerGroup:]), le.Uint32(sb[oInodes:])
	if perGroup == 0 || inodes == 0 || inodes%8 != 0 || inodes > 8*block {
		return fmt.Errorf("reading the superblock: %d blocks and %d inodes in a group", perGroup, inodes)
	}
	pad := make([]byte, block-inodes/8)
	for i := range pad {
		pad[i] = 0xff
	}
	gd := make([]byte, descriptor)
	for g := range (blocks + perGroup - 1) / perGroup {
		if _, err := disk.ReadAt(gd, block+int64(g)*descriptor); err != nil {
			return fmt.Errorf("reading group %d: %w", g, err)
		}
		if _, err := disk.WriteAt(pad, int64(le.Uint32(gd[oBitmap:]))*block+int64(inodes/8)); err != nil {
			return fmt.Errorf("writing the bitmap of group %d: %w", g, err)
		}
	}
	return nil
}
