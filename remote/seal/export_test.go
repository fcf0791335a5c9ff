package seal

// Derived returns those keys of the key that are to be had.
func (k *Key) Derived() [][]byte { return [][]byte{k.names, k.labels} }
