"""The paths of the API, one module a resource; handlers translate and delegate."""
