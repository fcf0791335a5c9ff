package vmm

import (
	"fmt"
	"os"
)

// Check refuses what a VMM would misread or answer with something obscure.
// Backends call it first, with the number of vCPUs that they can give.
func Check(c Config, h Host, maxVCPUs int) error {
	switch {
	case c.VCPUs < 1 || c.VCPUs > maxVCPUs:
		return fmt.Errorf("%d vCPUs: want 1 to %d", c.VCPUs, maxVCPUs)
	case c.MemoryMiB < 1:
		return fmt.Errorf("%d MiB of memory: want at least 1", c.MemoryMiB)
	case h.ID == "" || !plain(h.ID):
		return fmt.Errorf("instance id %q: want letters, digits and '-'", h.ID)
	case h.Tap != "" && len(h.MAC) != 6:
		return fmt.Errorf("MAC address %q: want six bytes", h.MAC)
	case h.UID < 0 || h.GID < 0 || (h.UID == 0) != (h.GID == 0):
		return fmt.Errorf("user %d:%d: want both above 0, or both 0", h.UID, h.GID)
	}
	if c.RootDisk != "" {
		if _, err := os.Stat(c.RootDisk); err != nil {
			return fmt.Errorf("root disk: %w", err)
		}
	}
	return nil
}

func plain(id string) bool {
	for _, r := range id {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' {
			return false
		}
	}
	return true
}
