"""kjump.dump"""
