"""The studies: each has its computation, tables and page in one folder."""
