package test

import "go/ast"

// names lists the identifiers that a file declares.
func names(file *ast.File) []string {
	var all []string
	ast.Inspect(file, func(n ast.Node) bool {
		switch d := n.(type) {
		case *ast.FuncDecl:
			all = append(all, d.Name.Name)
		case *ast.TypeSpec:
			all = append(all, d.Name.Name)
		case *ast.ValueSpec:
			for _, name := range d.Names {
				all = append(all, name.Name)
			}
		case *ast.Field:
			for _, name := range d.Names {
				all = append(all, name.Name)
			}
		}
		return true
	})
	return all
}
