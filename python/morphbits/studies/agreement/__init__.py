"""Do the native engine and Verrou agree?"""
