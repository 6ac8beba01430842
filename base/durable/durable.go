// Package durable writes files that must be whole, whatever happens meanwhile.
package durable

import (
	"errors"
	"os"
	"path/filepath"
)

// Write makes a file hold a text, all of it or what it held before, also when the power fails: once it returns, the text stays.
func Write(path string, text []byte, mode os.FileMode) error {
	temp := path + ".new"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
